// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoints in real storage: an S3 store, another machine through ssh, files of zstd, gpg and age. All of it is on this machine.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Build, Run, Who, until};

/// A service that ends with its test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

/// A port that nobody has just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Three times saved to a command and taken back from another, with these variables.
#[track_caller]
fn three_generations(bench: &Bench, variables: &[(&str, &str)], save: &str, back: &str) {
    let order = |args: &[&str]| ckpt(bench, variables, args);
    let (save, back) = (format!("|{save}"), format!("|{back}"));
    let subject = bench.subject("memory", Build::Pie);
    let mut run = order(&["-n", &save, subject.to_str().expect("utf-8")]);
    run.expect("ready");
    for _ in 0..3 {
        run.check();
        run.signal(SIGTSTP);
        run.ends_well();
        run = order(&["restart", &back]);
    }
    run.check();
    run.go();
}

/// `ckpt ARGS…` with these variables.
fn ckpt(bench: &Bench, variables: &[(&str, &str)], args: &[&str]) -> Run {
    let mut command = bench.command(bench.ckpt());
    command.args(args).envs(variables.iter().copied());
    Run::start(command)
}

/// Where scripts/install puts the S3 store and the client.
fn packages() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().nth(2).expect("the target").join("s3")
}

/// An S3 store with `bucket`, and what its clients have to know of it.
fn store(bench: &Bench) -> (Service, Vec<(&'static str, String)>) {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
    command.env("PYTHONPATH", packages()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("moto (scripts/install test)");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let service = Service(child);
    let endpoint = loop {
        let mut line = String::new();
        assert!(said.read_line(&mut line).expect("a line") > 0, "the S3 store has ended");
        if let Some(at) = line.find("http://127.0.0.1:") {
            break line[at..].split_whitespace().next().expect("an address").to_owned();
        }
    };
    // It says a line for each request, and must not wait for a reader.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let aws = format!(
        "#!/bin/sh\nPYTHONPATH={} exec /usr/bin/python3 -m awscli \"$@\"\n",
        packages().display()
    );
    let aws = bench.file("aws", aws);
    fs::set_permissions(aws, PermissionsExt::from_mode(0o755)).expect("chmod");
    let variables = vec![
        ("AWS_ACCESS_KEY_ID", "key".into()),
        ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ("AWS_DEFAULT_REGION", "us-east-1".into()),
        ("AWS_ENDPOINT_URL", endpoint.clone()),
        ("AWS_MAX_ATTEMPTS", "1".into()),
        ("RCLONE_CONFIG", "/dev/null".into()),
        ("RCLONE_CONFIG_S3_TYPE", "s3".into()),
        ("RCLONE_CONFIG_S3_PROVIDER", "Other".into()),
        ("RCLONE_CONFIG_S3_ENV_AUTH", "true".into()),
        ("RCLONE_CONFIG_S3_ENDPOINT", endpoint),
        ("RCLONE_CONFIG_S3_NO_CHECK_BUCKET", "true".into()),
        ("RCLONE_LOW_LEVEL_RETRIES", "1".into()),
        ("RCLONE_RETRIES", "1".into()),
    ];
    client(bench, &variables, "./aws s3 mb s3://bucket");
    // rclone asks for a version by name, which moto knows of such buckets alone.
    let versions = "--bucket bucket --versioning-configuration Status=Enabled";
    client(bench, &variables, &format!("./aws s3api put-bucket-versioning {versions}"));
    (service, variables)
}

/// What a client says.
#[track_caller]
fn client(bench: &Bench, variables: &[(&str, String)], line: &str) -> String {
    let mut command = bench.command("sh");
    command.args(["-c", line]).envs(variables.iter().map(|(name, value)| (name, value)));
    let ended = Run::start(command).end();
    assert_eq!(ended.code(), Some(0), "{line}: {ended:?}");
    ended.stdout.join("\n")
}

/// Where a store's clients find objects, and what they say of a bucket that there is not.
struct Client {
    put: &'static str,
    get: &'static str,
    list: &'static str,
    no_bucket: &'static str,
}

fn an_object_store(who: Who, how: &Client) {
    let bench = Bench::new(who);
    let (service, owned) = store(&bench);
    let variables: Vec<_> = owned.iter().map(|(name, value)| (*name, &**value)).collect();
    let put = |place: &str| how.put.replace("PLACE", place);
    let get = |place: &str| how.get.replace("PLACE", place);
    three_generations(
        &bench,
        &variables,
        &format!("{} && echo $CKPT_NUMBER >newest", put("bucket/$CKPT_NUMBER.ckpt")),
        &get("bucket/$(cat newest).ckpt"),
    );
    let all = client(&bench, &owned, how.list);
    for name in ["1.ckpt", "2.ckpt", "3.ckpt"] {
        assert!(all.contains(name), "{all}");
    }
    // A job that is begun by the same line each time.
    let subject = bench.subject("memory", Build::Pie);
    let subject = subject.to_str().expect("utf-8");
    let (name, probe) = (format!("|{}", put("bucket/x")), get("bucket/x"));
    let line = ["--resume", "-n", &name, "--probe"];
    let mut run = ckpt(&bench, &variables, &[&line[..], &["true", subject]].concat());
    run.expect("ready");
    for _ in 0..2 {
        run.check();
        run.signal(SIGTSTP);
        run.ends_well();
        run = ckpt(&bench, &variables, &[&line[..], &[&probe, subject]].concat());
    }
    run.check();
    run.go();
    // A probe that fails does not begin the program anew.
    let ended =
        ckpt(&bench, &variables, &[&line[..], &[&get("nowhere/x"), subject]].concat()).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("nothing was started"), "{ended:?}");
    // A wrong bucket and a store that is gone are failed checkpoints, and no harm.
    let mut wrong = ckpt(&bench, &variables, &["-n", &format!("|{}", put("nowhere/x")), subject]);
    wrong.expect("ready");
    wrong.signal(SIGTSTP);
    wrong.complaint(&format!(
        "no checkpoint: the command '{}' ended with status 1: ",
        put("nowhere/x")
    ));
    wrong.complaint(how.no_bucket);
    wrong.check();
    drop(service);
    wrong.signal(SIGTSTP);
    until("a second complaint", || {
        (wrong.stderr().matches("no checkpoint: the command").count() == 2).then_some(())
    });
    wrong.check();
    wrong.go();
}

const AWS: Client = Client {
    put: "./aws s3 cp - s3://PLACE",
    get: "./aws s3 cp s3://PLACE -",
    list: "./aws s3 ls s3://bucket/",
    no_bucket: "The specified bucket does not exist",
};

#[test]
fn an_object_store_by_aws() {
    an_object_store(Who::Nobody, &AWS);
}

#[test]
fn an_object_store_by_rclone() {
    let rclone = Client {
        put: "rclone -q rcat s3:PLACE",
        get: "rclone -q cat s3:PLACE",
        list: "rclone -q lsf s3:bucket",
        no_bucket: "status code: 404",
    };
    an_object_store(Who::Me, &rclone);
}

#[test]
fn another_machine_by_ssh() {
    let bench = Bench::new(Who::Me);
    for name in ["host", "user"] {
        let mut command = bench.command("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f", name]);
        Run::start(command).ends_well();
    }
    let (port, dir) = (free_port(), bench.dir.display());
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\n\
         StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n"
    );
    bench.file("sshd_config", config);
    let mut line = format!("exec /usr/sbin/sshd -D -e -f {dir}/sshd_config");
    let mut command = Command::new("sh");
    if nix::unistd::geteuid().is_root() {
        // It changes its root to an empty directory of that name.
        line = format!("mount -t tmpfs none /run && mkdir /run/sshd && {line}");
        command = Command::new("unshare");
        command.args(["-m", "sh"]);
    }
    command.args(["-c", &line]).stderr(Stdio::null());
    let _service = Service(command.spawn().expect("sshd"));
    let ssh = format!(
        "ssh -F none -p {port} -i {dir}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o LogLevel=ERROR 127.0.0.1"
    );
    until("sshd", || {
        let mut command = bench.command("sh");
        command.args(["-c", &format!("{ssh} true")]);
        (Run::start(command).end().code() == Some(0)).then_some(())
    });
    three_generations(
        &bench,
        &[],
        &format!("zstd -q | {ssh} 'cat >{dir}/x.new && mv {dir}/x.new {dir}/x.zst'"),
        &format!("{ssh} cat {dir}/x.zst | zstd -dc"),
    );
}

#[test]
fn files_of_gpg() {
    let bench = Bench::new(Who::Nobody);
    let home = bench.subdirectory("gnupg");
    fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).expect("chmod");
    let gpg = "gpg --batch --quiet --yes --pinentry-mode loopback --passphrase words";
    let home = home.to_str().expect("utf-8");
    three_generations(
        &bench,
        &[("GNUPGHOME", home)],
        &format!("{gpg} --symmetric -o x.gpg"),
        &format!("{gpg} --decrypt x.gpg"),
    );
    let mut command = bench.command("gpgconf");
    command.args(["--homedir", home, "--kill", "all"]);
    Run::start(command).ends_well();
}

#[test]
fn files_of_age() {
    let bench = Bench::new(Who::Nobody);
    let mut command = bench.command("age-keygen");
    command.args(["-o", "key"]);
    Run::start(command).ends_well();
    three_generations(
        &bench,
        &[],
        "age -e -i key -o x.new && mv x.new x.age",
        "age -d -i key x.age",
    );
}
