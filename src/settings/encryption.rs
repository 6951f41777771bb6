// SPDX-License-Identifier: LGPL-2.1-only
//! The lines of the table that encrypted checkpoints have.

use super::fields::{Said, fill, flag, inherit, put_flag};
use super::server::Key;
use super::setting::{Kind, Reach, Setting, Variable};
use super::{parse_number, parse_switch};
use ckpt_abi::region::config_flag;

/// `--passphrase-fd`.
pub(super) const PASSPHRASE_FD: Setting = Setting {
    short: None,
    long: "passphrase-fd",
    value: Some(("N", Kind::Number)),
    optional: false,
    env: None,
    default: None,
    reach: Reach::Keyed,
    help: "Read a passphrase for --encrypt from N",
    description: "Makes the key of encrypted checkpoints from a passphrase (Argon2id), which is the first line \
                  that descriptor N gives: 3<file, or 3< <(pass show job). A restart that needs one and is not \
                  given one asks for it at the terminal. A checkpoint server does not take it as a key.",
    parse: |said, value| {
        let fd = parse_number::<i32>(value, "the number of a descriptor");
        fill(&mut said.transfer.key, fd.map(Key::Descriptor))
    },
    written: |_| Said::Nothing,
    inherit: |_, _| {},
    apply: |_, _| {},
    read: |_, _| Ok(()),
};

/// `--encrypt`.
pub(super) const ENCRYPT: Setting = Setting {
    short: None,
    long: "encrypt",
    value: None,
    optional: false,
    env: Some(Variable { name: "CKPT_ENCRYPT", value: "0 or 1" }),
    default: Some("0"),
    reach: Reach::Saves,
    help: "Encrypt checkpoints",
    description: "Encrypts the memory, files and records in checkpoints (AES-256-GCM) with the key that --key names \
                  (ckpt keygen makes one), wherever they go. A restart needs the same key: --key, CKPT_KEY or \
                  ~/.config/ckpt/key. ckpt itself, sizes and the number of processes stay readable. A changed \
                  checkpoint is refused; where this option or CKPT_ENCRYPT=1 is given, so is one that is not \
                  encrypted.",
    parse: |said, value| fill(&mut said.encrypt, parse_switch(value)),
    written: |said| Said::switch(said.encrypt),
    inherit: |said, weaker| inherit(&mut said.encrypt, &weaker.encrypt),
    apply: |said, config| put_flag(config, config_flag::ENCRYPT, said.encrypt),
    read: |said, config| {
        said.encrypt = flag(config, config_flag::ENCRYPT);
        Ok(())
    },
};
