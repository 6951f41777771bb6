// SPDX-License-Identifier: LGPL-2.1-only
//! What is done for each line of /proc, each page and each record: the rest of ckpt is built for size, this for speed.
//!
//! Nothing here is generic: a generic function is compiled where it is used, for size. What has but one caller says
//! `inline(never)`, for the same reason.
#![deny(unsafe_code)]

pub mod lz4;
pub mod pages;
pub mod records;
pub mod text;
