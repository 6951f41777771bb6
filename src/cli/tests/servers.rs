// SPDX-License-Identifier: LGPL-2.1-only
use super::*;

#[test]
fn servers() {
    use crate::cli::ServeOptions;
    use crate::settings::server::{Key, ServerName};
    let name = |text: &str| ServerName::parse_folder(OsStr::new(text)).unwrap();
    let transfer = |key| Transfer { key: Some(key), ..Transfer::default() };
    let home = |line: &[&str]| with_env(line, &[("HOME", "/h")]);
    let usual = transfer(Key::Usual("/h/.config/ckpt/key".into()));
    let list = |json| Command::List { folder: name("cssrv://h"), transfer: usual.clone(), json };
    assert_eq!(home(&["ls", "cssrv://h"]), Ok(list(false)));
    assert_eq!(home(&["ls", "--json", "cssrv://h"]), Ok(list(true)));
    let said = transfer(Key::Said("k".into()));
    let removed = Command::Remove { name: name("cssrv://h/x"), transfer: said.clone() };
    assert_eq!(home(&["rm", "cssrv://h/x", "--key", "k"]), Ok(removed.clone()));
    assert_eq!(with_env(&["rm", "cssrv://h/x"], &[("CKPT_KEY", "k")]), Ok(removed));
    let put = Command::Put { file: "f".into(), name: name("cssrv://h/x"), transfer: said.clone() };
    assert_eq!(run(&["put", "--key=k", "f", "cssrv://h/x"]), Ok(put));
    let get = Command::Get { name: name("cssrv://h/x"), file: None, transfer: said };
    assert_eq!(run(&["get", "--key=k", "cssrv://h/x"]), Ok(get));
    assert!(run(&["get", "cssrv://h/x", "f", "g"]).is_err());
    assert!(run(&["put", "f"]).is_err());
    let args = vec!["-n".into(), "y".into(), "--insecure".into()];
    let resumed =
        Command::Restart { name: "x".into(), transfer: Transfer::default(), args, trust: false };
    assert_eq!(run(&["restart", "x", "-n", "y", "--insecure"]), Ok(resumed));
    let options = ServeOptions {
        port: Some(0),
        listen: vec!["::1".into(), "h".into()],
        max_bytes: Some(3 << 30),
        json: true,
        transfer: usual,
        ..ServeOptions::default()
    };
    let line = ["-p", "0", "--listen", "[::1]", "--listen", "h", "--max-bytes", "3G", "--json"];
    assert_eq!(home(&[&["serve"], &line[..]].concat()), Ok(Command::Serve(options.clone())));
    let original = ServeOptions { original: true, transfer: Transfer::default(), ..options };
    assert_eq!(
        crate::cli::parse_ckptsrv(words("ckptsrv", &line)).unwrap(),
        Command::Serve(original)
    );
}
