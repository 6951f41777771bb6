// SPDX-License-Identifier: LGPL-2.1-only
//! Completion scripts for shells, made from the table.

use std::ffi::OsStr;
use std::fmt::Write;

use super::table::{self, Entry, Form, Kind, Opt};
use crate::settings::SIGNALS;

/// A shell that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shell {
    /// GNU bash, with or without the bash-completion package.
    Bash,
    /// zsh with compinit.
    Zsh,
    /// fish.
    Fish,
}

impl Shell {
    pub(super) fn of_name(name: &OsStr) -> Option<Self> {
        let index = table::SHELLS.iter().position(|known| *known == name)?;
        Some([Self::Bash, Self::Zsh, Self::Fish][index])
    }
}

/// The script that teaches a shell the command line of ckpt.
pub(crate) fn completions(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// The options that stand before the deciding word.
fn leading() -> impl Iterator<Item = &'static Opt> {
    table::options(&[Form::Launch, Form::Attach])
}

fn of(entry: &Entry) -> impl Iterator<Item = &'static Opt> + use<> {
    let form = entry.form;
    table::OPTIONS.iter().filter(move |opt| opt.forms.contains(&form))
}

/// "-n", "--name".
fn spellings(opt: &Opt) -> Vec<String> {
    let short = opt.short.map(|short| format!("-{short}"));
    short.into_iter().chain([format!("--{}", opt.long)]).collect()
}

/// Whether the word behind the option is its value.
fn takes_word(opt: &Opt) -> bool {
    opt.value.is_some() && !opt.optional
}

fn all_spellings<'a>(opts: impl Iterator<Item = &'a Opt>) -> Vec<String> {
    opts.flat_map(spellings).collect()
}

/// The options whose value is the word behind them.
fn valued(between: &str) -> String {
    all_spellings(table::OPTIONS.iter().filter(|opt| takes_word(opt))).join(between)
}

fn subcommand_words() -> String {
    table::subcommands().map(|(word, _)| word).collect::<Vec<_>>().join(" ")
}

/// The words that a value or an operand can be, if they are few.
fn listed(kind: Kind) -> String {
    match kind {
        Kind::Cpu => "native x86-64-v1 x86-64-v2 x86-64-v3 x86-64-v4".into(),
        Kind::Ids => "keep new auto".into(),
        Kind::Any => "any".into(),
        Kind::Signal => {
            let catchable = |name: &&&str| !matches!(**name, "" | "KILL" | "STOP");
            SIGNALS.iter().filter(catchable).copied().collect::<Vec<_>>().join(" ")
        }
        Kind::Subcommand => subcommand_words(),
        Kind::Shell => table::SHELLS.join(" "),
        Kind::File | Kind::Pid | Kind::Number | Kind::Program => String::new(),
    }
}

/// The word that is completed, and the one before it. bash makes three words of --name=NAME.
const PRELUDE: &str = "\x20   local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} eq=\n\
     \x20   COMPREPLY=()\n\
     \x20   [ \"$cur\" = = ] && cur= eq=1\n\
     \x20   [ \"$prev\" = = ] && prev=${COMP_WORDS[COMP_CWORD-2]} eq=1\n";

fn bash() -> String {
    let valued = valued("|");
    let mut script = format!(
        "# Completions of bash for ckpt, made by 'ckpt completions bash'.\n\
         _ckpt_own() (cd /proc && for p in [0-9]*; do [ -O \"$p\" ] && [ -e \"$p/exe\" ] && echo \"$p\"; done)\n\
         _ckpt() {{\n\
         {PRELUDE}\
         \x20   local word= at=1 n=0\n\
         \x20   while [ \"$at\" -lt \"$COMP_CWORD\" ]; do\n\
         \x20       case ${{COMP_WORDS[at]}} in\n\
         \x20           {valued})\n\
         \x20               [ \"${{COMP_WORDS[at+1]}}\" = = ] && at=$((at + 1))\n\
         \x20               at=$((at + 2)) ;;\n\
         \x20           --) at=$((at + 1)); [ $n != 0 ] || {{ word=--; break; }} ;;\n\
         \x20           -*) at=$((at + 1)) ;;\n\
         \x20           =) at=$((at + 2)) ;;\n\
         \x20           *)\n\
         \x20               n=$((n + 1)) word=${{word:-${{COMP_WORDS[at]}}}}\n\
         \x20               case $word$n in\n\
         \x20                   restart2|move3) _ckpt_file; return ;;\n\
         \x20                   restart*|move*) at=$((at + 1)) ;;\n\
         \x20                   *) break ;;\n\
         \x20               esac ;;\n\
         \x20       esac\n\
         \x20   done\n\
         \x20   case $word in\n"
    );
    for (word, entry) in table::subcommands() {
        let _ = writeln!(script, "        {word})");
        bash_place(&mut script, of(entry), entry.operand.as_ref().map(|operand| operand.kind));
        script.push_str("            ;;\n");
    }
    script.push_str("        '')\n");
    bash_place(&mut script, leading(), Some(Kind::Program));
    script.push_str(
        "            ;;\n\
         \x20       *)\n\
         \x20           if declare -F _comp_command_offset >/dev/null; then\n\
         \x20               _comp_command_offset \"$at\"\n\
         \x20           elif declare -F _command_offset >/dev/null; then\n\
         \x20               _command_offset \"$at\"\n\
         \x20           elif [ \"$at\" -eq \"$COMP_CWORD\" ]; then\n\
         \x20               COMPREPLY=($(compgen -c -- \"$cur\"))\n\
         \x20           else\n\
         \x20               compopt -o filenames 2>/dev/null\n\
         \x20               mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n\
         \x20           fi\n\
         \x20           ;;\n\
         \x20   esac\n\
         }\n\
         complete -F _ckpt ckpt\n\
         # A checkpoint: ./foo.ckpt --<TAB>. What completed commands without completions still does so.\n\
         _ckpt_file() {\n",
    );
    script.push_str(PRELUDE);
    bash_place(&mut script, of(table::entry(Form::Stub)), Some(Kind::File));
    script.push_str(
        "}\n\
         _ckpt_any() {\n\
         \x20   case $1 in *.ckpt) _ckpt_file; return ;; esac\n\
         \x20   [ -z \"$_ckpt_before\" ] || \"$_ckpt_before\" \"$@\"\n\
         }\n\
         case $(complete -p -D 2>/dev/null) in\n\
         \x20   *' _ckpt_any'*) ;;\n\
         \x20   *' -F '*) _ckpt_before=$(complete -p -D | sed 's/.* -F \\([^ ]*\\).*/\\1/')\n\
         \x20       complete -D -F _ckpt_any -o bashdefault -o default ;;\n\
         \x20   '') _ckpt_before= && complete -D -F _ckpt_any -o bashdefault -o default ;;\n\
         esac\n",
    );
    script
}

/// What can stand where the options `opts` and an operand of this kind can.
fn bash_place(
    script: &mut String,
    opts: impl Iterator<Item = &'static Opt>,
    operand: Option<Kind>,
) {
    let opts: Vec<&Opt> = opts.collect();
    script.push_str("            case $prev in\n");
    for opt in &opts {
        if let Some((_, kind)) = opt.value {
            let (names, words) = (spellings(opt).join("|"), bash_words(kind));
            // A value that may be missing stands behind '=' only.
            let unless = if opt.optional { "[ -z \"$eq\" ] || " } else { "" };
            let _ = writeln!(script, "                {names}) {unless}{{ {words}; return; }} ;;");
        }
    }
    let options = all_spellings(opts.into_iter()).join(" ");
    let operand = operand.map_or(":".to_owned(), bash_words);
    let _ = write!(
        script,
        "            esac\n\
         \x20           case $cur in\n\
         \x20               -*) COMPREPLY=($(compgen -W '{options}' -- \"$cur\")) ;;\n\
         \x20               *) {operand} ;;\n\
         \x20           esac\n"
    );
}

fn bash_words(kind: Kind) -> String {
    let words = match kind {
        Kind::File => {
            return "compopt -o filenames 2>/dev/null; \
                    mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")"
                .into();
        }
        Kind::Program => {
            return format!(
                "compopt -o filenames 2>/dev/null; \
                 COMPREPLY=($(compgen -c -W '{}' -- \"$cur\"))",
                subcommand_words()
            );
        }
        Kind::Pid => "$(_ckpt_own)".into(),
        _ => listed(kind),
    };
    format!("COMPREPLY=($(compgen -W \"{words}\" -- \"$cur\"))")
}

fn zsh() -> String {
    let mut script = "#compdef ckpt\n\
         # Completions of zsh for ckpt, made by 'ckpt completions zsh'.\n\
         _ckpt() {\n\
         \x20 local context state state_descr line ret=1\n\
         \x20 typeset -A opt_args\n\
         \x20 local -a subcommands\n\
         \x20 subcommands=(\n"
        .to_owned();
    for (word, entry) in table::subcommands() {
        let _ = writeln!(script, "    {}", zsh_quoted(&format!("{word}:{}", entry.help)));
    }
    script.push_str("  )\n  _arguments -s -S -C \\\n");
    for opt in leading() {
        let _ = writeln!(script, "    {} \\", zsh_option(opt));
    }
    script.push_str(
        "    '(-)1: :->word' '*:: :->rest' && ret=0\n\
         \x20 case $state in\n\
         \x20   word)\n\
         \x20     _describe -t subcommands subcommand subcommands && ret=0\n\
         \x20     _command_names -e && ret=0\n\
         \x20     ;;\n\
         \x20   rest)\n\
         \x20     case $words[1] in\n",
    );
    for (word, entry) in table::subcommands() {
        let _ = write!(script, "        {word})\n          _arguments -s -S");
        for opt in of(entry) {
            let _ = write!(script, " \\\n            {}", zsh_option(opt));
        }
        if let Some(operand) = &entry.operand {
            let rest = match entry.form {
                Form::Restart => "(-)1",
                Form::Move => "(-)2:HOST:_hosts' '1",
                _ => "1",
            };
            let action = zsh_action(operand.kind);
            let _ = write!(script, " \\\n            '{rest}:{}:{action}'", operand.name);
            if rest != "1" {
                script.push_str(" '*:: :_ckpt_file'");
            }
        }
        script.push_str(" && ret=0\n          ;;\n");
    }
    script.push_str(
        "        *) _normal && ret=0 ;;\n\
         \x20     esac\n\
         \x20     ;;\n\
         \x20 esac\n\
         \x20 return ret\n\
         }\n\
         _ckpt_own() {\n\
         \x20 local p; local -a all\n\
         \x20 for p in /proc/<->(NU); do [[ -e $p/exe ]] && all+=(\"$p:t:$(<$p/comm)\"); done 2>/dev/null\n\
         \x20 _describe -t processes process all\n\
         }\n\
         _ckpt_file() {\n\
         \x20 _compskip=all\n\
         \x20 _arguments -s -S",
    );
    for opt in of(table::entry(Form::Stub)) {
        let _ = write!(script, " \\\n    {}", zsh_option(opt));
    }
    script.push_str(
        " '*:file:_files'\n\
         }\n\
         compdef -p _ckpt_file '*.ckpt'\n\
         if [ \"$funcstack[1]\" = _ckpt ]; then\n\
         \x20 _ckpt \"$@\"\n\
         else\n\
         \x20 compdef _ckpt ckpt\n\
         fi\n",
    );
    script
}

/// A specification of _arguments: `'(-n --name)'{-n+,--name=}'[help]:NAME:_files'`.
fn zsh_option(opt: &Opt) -> String {
    let exclusive = if opt.is_page() { "- *".to_owned() } else { spellings(opt).join(" ") };
    let help = opt.help.replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    let (short, long, value) = match opt.value {
        Some((name, kind)) if opt.optional => ("+", "=-", format!("::{name}:{}", zsh_action(kind))),
        Some((name, kind)) => ("+", "=", format!(":{name}:{}", zsh_action(kind))),
        None => ("", "", String::new()),
    };
    let tail = zsh_quoted(&format!("[{help}]{value}"));
    let long = format!("--{}{long}", opt.long);
    match opt.short {
        Some(c) => format!("'({exclusive})'{{-{c}{short},{long}}}{tail}"),
        None => format!("'({exclusive})'{long}{tail}"),
    }
}

fn zsh_action(kind: Kind) -> String {
    match kind {
        Kind::File => "_files".into(),
        Kind::Pid => "_ckpt_own".into(),
        Kind::Program => "_command_names -e".into(),
        Kind::Number => " ".into(),
        _ => format!("({})", listed(kind)),
    }
}

fn zsh_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn fish() -> String {
    let valued = valued(" ");
    let mut script = format!(
        "# Completions of fish for ckpt, made by 'ckpt completions fish'.\n\
         # The first word that is no option; --file behind a checkpoint.\n\
         function __ckpt_word\n\
         \x20   set -l value 0\n\
         \x20   set -l words\n\
         \x20   for token in (commandline -opc)[2..-1]\n\
         \x20       if test $value = 1\n\
         \x20           set value 0\n\
         \x20       else if contains -- $token {valued}\n\
         \x20           set value 1\n\
         \x20       else if test \"$token\" = --; or not string match -q -- '-*' $token\n\
         \x20           set words $words $token\n\
         \x20       end\n\
         \x20   end\n\
         \x20   if contains -- \"$words[1] \"(count $words[2..3]) 'restart 1' 'restart 2' 'move 2'\n\
         \x20       echo --file\n\
         \x20   else\n\
         \x20       echo -- $words[1]\n\
         \x20   end\n\
         end\n\
         function __ckpt_in\n\
         \x20   test \"$(__ckpt_word)\" = \"$argv[1]\"\n\
         end\n\
         function __ckpt_own\n\
         \x20   for p in (string match -r '^/proc/\\d+$' /proc/*)\n\
         \x20       test -O $p -a -e $p/exe; and printf '%s\\t%s\\n' (string sub -s 7 $p) (cat $p/comm 2>/dev/null)\n\
         \x20   end\n\
         end\n\
         function __ckpt_program\n\
         \x20   not contains -- (__ckpt_word) '' --file {}\n\
         end\n\
         complete -c ckpt -f\n\
         complete -c ckpt -n __ckpt_program -a '(__fish_complete_subcommand {valued})'\n\
         complete -c ckpt -n __ckpt_in -a '(__fish_complete_command)'\n",
        subcommand_words()
    );
    for opt in leading() {
        fish_option(&mut script, "__ckpt_in", opt);
    }
    for (word, entry) in table::subcommands() {
        let help = fish_quoted(entry.help);
        let _ = writeln!(script, "complete -c ckpt -n __ckpt_in -a {word} -d {help}");
        let place = format!("__ckpt_in {word}");
        if let Some(operand) = &entry.operand {
            let _ = writeln!(script, "complete -c ckpt -n '{place}' {}", fish_words(operand.kind));
        }
        for opt in of(entry) {
            fish_option(&mut script, &place, opt);
        }
    }
    for opt in of(table::entry(Form::Stub)) {
        let _ = writeln!(script, "complete -p '*.ckpt'{}", fish_spelled(opt));
        fish_option(&mut script, "__ckpt_in --file", opt);
    }
    script
}

fn fish_option(script: &mut String, place: &str, opt: &Opt) {
    let _ = writeln!(script, "complete -c ckpt -n '{place}'{}", fish_spelled(opt));
}

/// The words of fish that describe an option.
fn fish_spelled(opt: &Opt) -> String {
    let short = opt.short.map_or(String::new(), |short| format!(" -s {short}"));
    let value = opt.value.filter(|_| !opt.optional);
    let value = value.map_or(String::new(), |(_, kind)| format!(" -r {}", fish_words(kind)));
    format!("{short} -l {}{value} -d {}", opt.long, fish_quoted(opt.help))
}

fn fish_words(kind: Kind) -> String {
    match kind {
        Kind::File => "-F".into(),
        Kind::Pid => "-f -a '(__ckpt_own)'".into(),
        Kind::Program => "-f -a '(__fish_complete_command)'".into(),
        _ => format!("-f -a '{}'", listed(kind)),
    }
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
