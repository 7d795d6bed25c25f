//! What looks like a secret: by its name, or by what stands in it.
//!
//! A release is read by everyone who may use the project's sessions, and by the agents in them. So what looks like a secret is told
//! before it leaves the machine. A guess in both directions: examples are told apart by their look, and a secret that looks like
//! nothing known passes.

use super::tokens;

/// A file that looks as if it held a secret. What the secret is, is never said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The file.
    pub path: String,
    /// The line, where it is the content that looks so.
    pub line: Option<u64>,
    /// What it looks like: `a private key`.
    pub what: &'static str,
}

/// Files longer than this are not looked into.
pub(super) const LOOKED_INTO: u64 = 4 << 20;
/// How many suspicions of one file are told.
const TOLD: usize = 10;

const ENVIRONMENT: &str = "a file of environment variables";
const KEY: &str = "a private key";
const STORE: &str = "a store of keys";
const CREDENTIALS: &str = "a file of credentials";

/// Whole names.
const NAMES: [(&str, &str); 20] = [
    (".env", ENVIRONMENT),
    (".envrc", ENVIRONMENT),
    ("id_rsa", KEY),
    ("id_dsa", KEY),
    ("id_ecdsa", KEY),
    ("id_ed25519", KEY),
    (".netrc", CREDENTIALS),
    ("_netrc", CREDENTIALS),
    (".pgpass", CREDENTIALS),
    (".git-credentials", CREDENTIALS),
    (".htpasswd", CREDENTIALS),
    (".dockercfg", CREDENTIALS),
    ("credentials.json", CREDENTIALS),
    (".credentials.json", CREDENTIALS),
    ("credentials.yml", CREDENTIALS),
    ("credentials.yaml", CREDENTIALS),
    ("client_secret.json", CREDENTIALS),
    ("service-account.json", CREDENTIALS),
    ("service_account.json", CREDENTIALS),
    ("terraform.tfstate", "a state file of Terraform, which holds secrets in clear"),
];
/// Ends of names.
const ENDS: [(&str, &str); 8] = [
    (".key", KEY),
    (".ppk", KEY),
    (".p12", STORE),
    (".pfx", STORE),
    (".jks", STORE),
    (".keystore", STORE),
    (".kdbx", STORE),
    (".env", ENVIRONMENT),
];
/// Last parts of a name that say that it is only an example.
const EXAMPLES: [&str; 7] = ["example", "sample", "template", "tmpl", "dist", "defaults", "schema"];

/// Looks at one file; without its content if it was too long to be looked into.
pub(super) fn look(path: &str, content: Option<&[u8]>, found: &mut Vec<Suspect>) {
    if let Some(what) = by_name(path, content) {
        found.push(Suspect { path: path.to_owned(), line: None, what });
    }
    let Some(content) = content.filter(|content| !is_binary(content)) else { return };
    let name = path.rsplit('/').next().unwrap_or(path);
    let inside = tokens::find(content).chain(tokens::find_settings(name, content)).take(TOLD);
    found.extend(inside.map(|(line, what)| Suspect { path: path.to_owned(), line: Some(line), what }));
}

fn by_name(path: &str, content: Option<&[u8]>) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let last = name.rsplit(['.', '-', '_']).next().unwrap_or_default();
    if EXAMPLES.contains(&last) || content.is_some_and(<[u8]>::is_empty) {
        return None;
    }
    if path.ends_with(".aws/credentials") || path.ends_with(".docker/config.json") {
        return Some(CREDENTIALS);
    }
    if name.starts_with(".env.") {
        return Some(ENVIRONMENT);
    }
    if has_end(&name, ".pem") {
        // Certificates are for everyone.
        let is = |word: &[u8]| content.is_some_and(|content| contains(content, word));
        let public = is(b"-----BEGIN CERTIFICATE") || is(b"-----BEGIN PUBLIC KEY");
        return (!public || is(b"PRIVATE KEY")).then_some(KEY);
    }
    let whole = NAMES.iter().find(|(known, _)| *known == name);
    whole.or_else(|| ENDS.iter().find(|(end, _)| has_end(&name, end))).map(|(_, what)| *what)
}

/// Whether the name has something before this end.
fn has_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| !rest.is_empty())
}

/// As git tells: a NUL near the beginning.
fn is_binary(content: &[u8]) -> bool {
    content[..content.len().min(8000)].contains(&0)
}

fn contains(content: &[u8], word: &[u8]) -> bool {
    content.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspected(path: &str, content: &str) -> Vec<(Option<u64>, &'static str)> {
        let mut found = Vec::new();
        look(path, Some(content.as_bytes()), &mut found);
        found.into_iter().map(|suspect| (suspect.line, suspect.what)).collect()
    }

    #[test]
    fn names_say_what_they_hold() {
        for name in [
            ".env",
            "a/.env",
            ".env.local",
            ".env.production",
            "prod.env",
            ".envrc",
            "id_rsa",
            "deploy/id_ed25519",
            "server.key",
            "a.p12",
            "a.PFX",
            ".netrc",
            "credentials.json",
            "terraform.tfstate",
            "my/.aws/credentials",
            "x.pem",
        ] {
            assert_eq!(suspected(name, "x").len(), 1, "{name}");
        }
        for name in [
            ".env.example",
            ".env.sample",
            "a/.env.template",
            "env.md",
            "id_rsa.pub",
            "environment",
            ".key",
            "keys.md",
            "credentials.json.example",
            "credentials.example",
            "monkey",
        ] {
            assert_eq!(suspected(name, "x"), [], "{name}");
        }
        assert_eq!(suspected(".env", ""), [], "there is nothing in it");
    }

    #[test]
    fn certificates_are_no_keys() {
        assert_eq!(suspected("ca.pem", "-----BEGIN CERTIFICATE-----\nx"), []);
        assert_eq!(
            suspected("ca.pem", "-----BEGIN CERTIFICATE-----\nx\n-----BEGIN PRIVATE KEY-----").len(),
            1
        );
    }

    #[test]
    fn only_so_many_are_told_and_none_of_what_is_no_text() {
        let key = ["AKIA", "Q3EGRUZ7WXN5KJ2P"].concat();
        assert_eq!(suspected("a.md", &format!("{key}\n").repeat(50)).len(), TOLD);
        assert_eq!(suspected("a.bin", &format!("\0{key}")), []);
    }
}
