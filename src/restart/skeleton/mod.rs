// SPDX-License-Identifier: LGPL-2.1-only
//! The processes of a tree: with their ids, parents, groups and sessions, before any of them becomes its program.

pub(crate) mod children;
pub(crate) mod corefile;
pub(crate) mod counted;
pub(crate) mod deputy;
pub(crate) mod init;
pub(crate) mod make;
pub(crate) mod namespaces;
pub(crate) mod nursery;
pub(crate) mod proxy;
pub(crate) mod rendezvous;
pub(crate) mod stay;
#[cfg(test)]
mod tests;
pub(crate) mod witness;
