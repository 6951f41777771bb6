#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-only
# Runs in the source tree; conda names where to install in PREFIX.
set -euo pipefail
cargo build --release --locked
packaging/lay "${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-musl/release/ckpt" "$PREFIX"
