//! Secrets that can be told by how they begin.

/// The letters that a kind of token is made of, after its beginning.
#[derive(Clone, Copy)]
enum Letters {
    /// Letters and digits.
    Plain,
    /// These, `-` and `_`.
    Dashed,
    /// Capitals and digits.
    Capitals,
}

/// A kind of token.
struct Token {
    start: &'static str,
    letters: Letters,
    /// The fewest letters that follow the beginning.
    fewest: usize,
    what: &'static str,
}

const fn token(start: &'static str, letters: Letters, fewest: usize, what: &'static str) -> Token {
    Token { start, letters, fewest, what }
}

/// The more exact beginning comes first.
const TOKENS: [Token; 31] = [
    token("kt_live_", Letters::Plain, 20, "an API key of Karta"),
    token("whsec_", Letters::Dashed, 20, "a secret of webhooks"),
    token("sk-ant-", Letters::Dashed, 20, "an API key of Anthropic"),
    token("sk-or-", Letters::Dashed, 20, "an API key of OpenRouter"),
    token("sk-proj-", Letters::Dashed, 20, "an API key of OpenAI"),
    token("sk-svcacct-", Letters::Dashed, 20, "an API key of OpenAI"),
    token("sk-", Letters::Plain, 20, "an API key of OpenAI, or of one that looks the same"),
    token("sk_live_", Letters::Plain, 16, "a secret key of Stripe"),
    token("rk_live_", Letters::Plain, 16, "a restricted key of Stripe"),
    token("AKIA", Letters::Capitals, 16, "an access key of AWS"),
    token("ASIA", Letters::Capitals, 16, "an access key of AWS"),
    token("ghp_", Letters::Plain, 30, "a token of GitHub"),
    token("gho_", Letters::Plain, 30, "a token of GitHub"),
    token("ghu_", Letters::Plain, 30, "a token of GitHub"),
    token("ghs_", Letters::Plain, 30, "a token of GitHub"),
    token("ghr_", Letters::Plain, 30, "a token of GitHub"),
    token("github_pat_", Letters::Dashed, 30, "a token of GitHub"),
    token("glpat-", Letters::Dashed, 20, "a token of GitLab"),
    token("xoxb-", Letters::Dashed, 20, "a token of Slack"),
    token("xoxp-", Letters::Dashed, 20, "a token of Slack"),
    token("xoxa-", Letters::Dashed, 20, "a token of Slack"),
    token("xapp-", Letters::Dashed, 20, "a token of Slack"),
    token("AIza", Letters::Dashed, 35, "an API key of Google"),
    token("GOCSPX-", Letters::Dashed, 20, "a client secret of Google"),
    token("npm_", Letters::Plain, 36, "a token of npm"),
    token("pypi-", Letters::Dashed, 50, "a token of PyPI"),
    token("hf_", Letters::Plain, 30, "a token of Hugging Face"),
    token("dop_v1_", Letters::Plain, 40, "a token of DigitalOcean"),
    token("SG.", Letters::Dashed, 20, "an API key of SendGrid"),
    token("lin_api_", Letters::Plain, 30, "an API key of Linear"),
    token("AGE-SECRET-KEY-1", Letters::Capitals, 40, "a private key"),
];

/// How a private key begins, and what follows the words that say of which kind.
const BLOCK: &[u8] = b"-----BEGIN ";
const BLOCK_ENDS: [&[u8]; 2] = [b"PRIVATE KEY-----", b"PRIVATE KEY BLOCK-----"];
/// The longest name of a kind of key.
const MAX_KIND: usize = 30;

/// A real token has many different letters; what stands for one in a text has few.
const FEWEST_DIFFERENT: usize = 8;
/// Words in what stands for a token in a text.
const STAND_INS: [&str; 6] = ["example", "xxxx", "your", "1234567890", "abcdef", "placeholder"];

/// Every token: its line, and what it looks like.
pub(super) fn find(content: &[u8]) -> impl Iterator<Item = (u64, &'static str)> {
    let (mut line, mut at) = (1, 0);
    std::iter::from_fn(move || {
        while let Some(&byte) = content.get(at) {
            let rest = &content[at..];
            let starts = at == 0 || !is_word(content[at - 1]);
            let found = if starts { seen(rest) } else { None };
            at += 1;
            if byte == b'\n' {
                line += 1;
            }
            if let Some((what, length)) = found {
                at += length.saturating_sub(1);
                return Some((line, what));
            }
        }
        None
    })
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What begins here, and how long it is; never more than one line of it.
fn seen(rest: &[u8]) -> Option<(&'static str, usize)> {
    let first = rest.first()?;
    if *first == b'-' {
        return block(rest).map(|length| ("a private key", length));
    }
    TOKENS.iter().filter(|token| token.start.as_bytes().first() == Some(first)).find_map(|token| {
        let body = rest.strip_prefix(token.start.as_bytes())?;
        let belongs = |byte: &&u8| match token.letters {
            Letters::Plain => byte.is_ascii_alphanumeric(),
            Letters::Dashed => is_word(**byte) || **byte == b'-',
            Letters::Capitals => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
        };
        let length = body.iter().take_while(belongs).count();
        (length >= token.fewest && is_real(&body[..length]))
            .then_some((token.what, token.start.len() + length))
    })
}

/// Whether this is a token and not what stands for one in a text.
fn is_real(body: &[u8]) -> bool {
    let mut different = body.to_vec();
    different.sort_unstable();
    different.dedup();
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    different.len() >= FEWEST_DIFFERENT && !STAND_INS.iter().any(|word| text.contains(word))
}

/// The length of the line with which a private key begins. That one is only named in a text is no key: something must follow.
fn block(rest: &[u8]) -> Option<usize> {
    let after = rest.strip_prefix(BLOCK)?;
    let kind =
        after.iter().take(MAX_KIND).take_while(|byte| byte.is_ascii_uppercase() || **byte == b' ').count();
    // The words of the end are capitals too: they may begin anywhere in what was just counted.
    (0..=kind).find_map(|from| {
        let end = BLOCK_ENDS.iter().find(|end| after[from..].starts_with(end))?;
        let length = from + end.len();
        let body = after[length..]
            .iter()
            .skip_while(|byte| matches!(byte, b'\r' | b'\n' | b'\\' | b'n' | b'r' | b' '));
        let letters =
            body.take_while(|byte| byte.is_ascii_alphanumeric() || b"+/=:-, ".contains(byte)).count();
        (letters >= 16).then_some(BLOCK.len() + length)
    })
}

/// Settings of programs that hold a token under a name: lines of `.npmrc`, `.yarnrc.yml`, `.pypirc`, and of AWS.
pub(super) fn find_settings(name: &str, content: &[u8]) -> impl Iterator<Item = (u64, &'static str)> {
    const TOKEN: &str = "a token for a registry of packages";
    let keys: &[(&str, &str)] = match name {
        ".npmrc" => &[("_authToken=", TOKEN), ("_auth=", TOKEN), ("_password=", TOKEN)],
        ".yarnrc.yml" => &[("npmAuthToken:", TOKEN), ("npmAuthIdent:", TOKEN)],
        ".pypirc" => &[("password=", TOKEN), ("password:", TOKEN)],
        _ => &[
            ("aws_secret_access_key=", "a secret key of AWS"),
            ("AWS_SECRET_ACCESS_KEY=", "a secret key of AWS"),
        ],
    };
    content.split(|&byte| byte == b'\n').zip(1..).filter_map(move |(line, number)| {
        let line: String = String::from_utf8_lossy(line)
            .chars()
            .filter(|letter| !matches!(letter, ' ' | '\t' | '"' | '\''))
            .collect();
        let (value, what) =
            keys.iter().find_map(|(key, what)| Some((line.split_once(key)?.1.trim_end(), *what)))?;
        // `${NPM_TOKEN}` is how it should be.
        let literal = value.len() >= 8 && !value.starts_with(['$', '<']) && is_real(value.as_bytes());
        literal.then_some((number, what))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made here piece by piece, so that this file is no suspect itself.
    const BODY: &str = "Zq7Xk2Wm9Tb4Vn6Rc8Yd3Hf5Jg0LpQsAeUiOzMwB1x";

    fn found(text: &str) -> Vec<(u64, &'static str)> {
        find(text.as_bytes()).collect()
    }

    #[test]
    fn every_kind_of_token_is_seen_with_its_line() {
        for token in &TOKENS {
            let body = match token.letters {
                Letters::Capitals => BODY.to_uppercase(),
                _ => BODY.to_owned(),
            };
            let body = format!("{body}{body}");
            let text = format!("one\nkey = \"{}{}\"\n", token.start, &body[..token.fewest]);
            assert_eq!(found(&text), [(2, token.what)], "{text}");
            let short = format!("{}{}", token.start, &body[..token.fewest - 1]);
            assert_eq!(found(&short), [], "{short}");
        }
        let two = format!("a: {0}{BODY}\nb: {0}{BODY}", ["ghp", "_"].concat());
        assert_eq!(found(&two).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_stands_for_a_token_is_none() {
        for text in [
            "sk-ant-...",
            "sk-ant-xxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "kt_live_0000000000000000000000000000",
            "kt_live_your-key-goes-here-and-so-on",
            "AKIAIOSFODNN7EXAMPLE",
            "task-management-for-the-whole-company",
            "disk-0123456789abcdefghijklmnopqrstu",
            "desk_live_Zq7Xk2Wm9Tb4Vn6Rc8Yd3Hf5Jg0L",
            "AKIAS",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }

    #[test]
    fn private_keys_are_seen_and_their_mention_is_not() {
        for kind in ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "] {
            let key = format!("{}{kind}PRIVATE KEY-----\n{BODY}", "-----BEGIN ");
            assert_eq!(found(&format!("x\n{key}")), [(2, "a private key")], "{key}");
            assert_eq!(found(&key.replace('\n', "\\n")), [(1, "a private key")], "in JSON");
        }
        let pgp = format!("{}PGP PRIVATE KEY BLOCK-----\n\nVersion: 1 of the program", "-----BEGIN ");
        assert_eq!(found(&pgp).len(), 1);
        assert_eq!(found(&format!("{}PRIVATE KEY-----` is how it begins", "`-----BEGIN ")), []);
        assert_eq!(found(&format!("{}PUBLIC KEY-----\n{BODY}", "-----BEGIN ")), []);
    }

    #[test]
    fn settings_are_read_by_their_names() {
        let of = |name: &str, text: &str| find_settings(name, text.as_bytes()).count();
        assert_eq!(of(".npmrc", &format!("a=b\n//host/:_authToken={BODY}\n")), 1);
        assert_eq!(of(".npmrc", "//host/:_authToken=${NPM_TOKEN}\n"), 0);
        assert_eq!(of(".yarnrc.yml", &format!("npmAuthToken: \"{BODY}\"")), 1);
        assert_eq!(of(".pypirc", &format!("password = {BODY}")), 1);
        assert_eq!(of("config", &format!("aws_secret_access_key = {BODY}")), 1);
        assert_eq!(of("config", "aws_secret_access_key = <your key>"), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(prop::sample::select(b"sk-antAKI_live -----BEGIN PRIVATE KEY\n\\nZq7X\xff".to_vec()), 0..200)) {
            let lines = bytes.split(|&byte| byte == b'\n').count() as u64;
            prop_assert!(find(&bytes).chain(find_settings(".npmrc", &bytes)).all(|(line, _)| line <= lines));
        }
    }
}
