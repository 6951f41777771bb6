// SPDX-License-Identifier: LGPL-2.1-only
#![doc = include_str!("README.md")]

#[macro_use]
pub mod error;

pub(crate) mod abreast;
pub(crate) mod cli;
pub mod command;
pub(crate) mod dump;
pub(crate) mod fault;
mod heap;
pub mod image;
pub(crate) mod inject;
pub(crate) mod object;
pub(crate) mod order;
pub(crate) mod packed;
pub mod proc;
pub(crate) mod progress;
pub(crate) mod ptrace;
pub(crate) mod resource;
pub mod restart;
pub(crate) mod rights;
pub mod serve;
pub mod settings;
pub(crate) mod speech;
pub(crate) mod units;
