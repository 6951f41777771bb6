// SPDX-License-Identifier: LGPL-2.1-only
//! No panics here.
//!
//! # Safety
//! The foreign function has no definition, so a payload that could reach it is never linked.
#![allow(unsafe_code)]
#![cfg(not(test))]

unsafe extern "C" {
    fn ckpt_payload_must_not_panic() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: never linked, so never called.
    unsafe { ckpt_payload_must_not_panic() }
}
