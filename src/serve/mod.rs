// SPDX-License-Identifier: LGPL-2.1-only
//! The checkpoint server and its clients.
//!
//! [`protocol`] is the page that says what goes over the wire; [`channel`] begins a conversation, whose [`frames`] go over
//! a stream that is [`sealed`] with the key of [`key`], or in the clear. On the server, [`server`] listens, [`session`] answers
//! one connection, and [`store`] keeps the files, with a line of [`log`] for each request. On the
//! other side, [`client`] asks, and [`upload`] is the sink that a dump writes to.

pub mod channel;
pub(crate) mod client;
pub mod frames;
pub mod key;
pub(crate) mod log;
pub mod protocol;
pub mod sealed;
pub(crate) mod server;
pub mod session;
pub mod store;
pub(crate) mod upload;
