// SPDX-License-Identifier: LGPL-2.1-only
//! The checkpoint server and its clients.
//!
//! [`protocol`] is the page that says what goes over the wire; [`channel`] begins a conversation, whose [`frames`] go over
//! a stream that is [`sealed`] with a shared key, or in the clear. On the server, [`server`] listens, [`session`] answers
//! one connection of one of the [`users`], and [`store`] keeps the files of a [`claim`], with a line of [`log`] for each request and sums of them in [`metrics`]. What an image is made of lies in
//! [`packs`] that a [`recipe`] leads to: [`receiving`] writes them, [`sending`] reads them, [`recount`] counts them anew, and [`checkup`] looks at all of it. On the
//! other side, [`client`] asks, and [`upload`] is the sink that a dump writes to.

pub mod channel;
pub(crate) mod checkup;
pub(crate) mod claim;
pub(crate) mod client;
pub mod frames;
mod index;
mod listing;
pub(crate) mod log;
mod metrics;
mod packs;
pub mod protocol;
mod receiving;
mod recipe;
mod recount;
pub mod sealed;
mod sending;
pub(crate) mod server;
pub mod session;
pub mod store;
pub(crate) mod upload;
pub mod users;
