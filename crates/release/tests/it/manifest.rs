//! `karta.toml` and `karta.jsonc`: what they say, and what is wrong with them, line by line.

use karta_harness::launch::{FolderPolicy, Gateway, Native};
use karta_harness::{Launch, Tree, registry};
use karta_release::{Fault, manifest, settings};
use karta_types::policy::{Defaults, Recipe};
use karta_types::session::{Isolation, PermissionMode};
use karta_types::{Micros, Secret};
use proptest::prelude::*;

fn told<T: std::fmt::Debug>(read: Result<T, Vec<Fault>>) -> Vec<String> {
    read.unwrap_err().iter().map(Fault::to_string).collect()
}

fn toml(text: &str) -> Vec<String> {
    told(manifest::parse(text))
}

fn jsonc(text: &str) -> Vec<String> {
    told(settings::parse(text))
}

#[test]
fn a_manifest_may_say_all_of_this() {
    let read = manifest::parse(
        r#"
            project = "shop-2"
            harness = { type = "opencode", version = "^1.18" }

            [build]
            setup = """
            npm ci
            """
            inputs = ["package*.json"]
            egress = ["registry.example.com:443"]

            [policy]
            hooks = false
            mcp = false
            isolation = "microvm"
            egress = ["api.example.com", "GET,POST api.example.com:8443/v1/*"]
            tools.deny = ["WebFetch", "mcp__shop"]
            [policy.caps]
            turn_seconds = 600
            session_cost_micros = 2_000_000
            session_total_tokens = 0x10

            [env]
            SHOP_URL = "https://example.com"
            lower = ""
            SHOP_KEY = { secret = true, hosts = ["api.example.com", "*.shop.example"] }
        "#,
    )
    .unwrap();
    assert_eq!(read.project.as_deref(), Some("shop-2"));
    assert_eq!(read.harness.kind.as_deref(), Some("opencode"));
    assert_eq!(read.harness.version.as_deref(), Some("^1.18"));
    assert_eq!(read.build.setup.as_deref(), Some("            npm ci\n            "));
    assert_eq!(read.build.inputs, ["package*.json"]);
    assert_eq!(read.build.egress, ["registry.example.com:443"]);
    assert!(!read.policy.hooks && !read.policy.mcp);
    assert_eq!(read.policy.isolation, Some(Isolation::Microvm));
    assert_eq!(read.policy.egress, ["api.example.com", "GET,POST api.example.com:8443/v1/*"]);
    assert_eq!(read.policy.tools.deny, ["WebFetch", "mcp__shop"]);
    assert_eq!(read.policy.caps.turn_seconds, Some(600));
    assert_eq!(read.policy.caps.session_cost_micros, Some(Micros::new(2_000_000)));
    assert_eq!(read.policy.caps.session_total_tokens, Some(16));
    assert_eq!(read.env.keys().collect::<Vec<_>>(), ["SHOP_URL", "lower"]);
    assert_eq!(read.secrets["SHOP_KEY"], ["api.example.com", "*.shop.example"]);
}

#[test]
fn an_empty_manifest_is_the_defaults() {
    for text in ["", "# nothing\n", "[policy]\n[build]\n[env]\n"] {
        let read = manifest::parse(text).unwrap();
        let recipe = Recipe { policy: read.policy, build: read.build, env: read.env, ..Recipe::default() };
        assert_eq!(recipe, Recipe::default());
    }
    for text in ["", "{}", "// nothing", "{ /* nothing */ }", "  \n"] {
        assert_eq!(settings::parse(text), Ok(Defaults::default()), "{text}");
    }
}

#[test]
fn unknown_keys_are_told_with_what_was_meant() {
    assert_eq!(
        toml(
            "harnes = 1\n[policy]\nhook = true\ntype = 1\n[policy.tool]\n[build]\nsetups = ''\n[nothing.like.it]\n"
        ),
        [
            "karta.toml:1:1: unknown key `harnes`; did you mean `harness`?",
            "karta.toml:3:1: unknown key `policy.hook`; did you mean `policy.hooks`?",
            "karta.toml:4:1: unknown key `policy.type`; did you mean `harness.type`?",
            "karta.toml:5:9: unknown key `policy.tool`; did you mean `policy.tools`?",
            "karta.toml:7:1: unknown key `build.setups`; did you mean `build.setup`?",
            "karta.toml:8:2: unknown key `nothing`",
        ]
    );
    assert_eq!(
        toml("  entry_point = 'x'\nbuildpack = 'y'"),
        [
            "karta.toml:1:3: `entry_point` is not taken: a harness is found by its own files; see `harness.type`",
            "karta.toml:2:1: `buildpack` is not taken: a folder runs as it is; what must be done before is `build.setup`",
        ]
    );
    assert_eq!(
        toml("\"harness.type\" = 'opencode'"),
        [
            "karta.toml:1:1: unknown key `harness.type`, written as one word with dots; each part of it is a table in the one before"
        ]
    );
}

#[test]
fn values_of_the_wrong_kind_are_told() {
    assert_eq!(
        toml(
            "project = 1\nharness = 'x'\nbuild.inputs = 'x'\nbuild.egress = [1]\npolicy.hooks = 'yes'\n\
             policy.caps.turn_seconds = 1.5\nenv.A = 1\nenv.B = true\nenv.C = 2026-01-01\nenv.D = { hosts = ['a.example'] }\nenv.E = { secret = true }\nenv.F = { secret = true, hosts = ['https://a'] }\n"
        ),
        [
            "karta.toml:1:11: `project` must be a text, not a whole number",
            "karta.toml:2:11: `harness` must be a table, not a text",
            "karta.toml:3:16: `build.inputs` must be a list of texts, not a text",
            "karta.toml:4:17: `build.egress` must be a list of texts, not a whole number",
            "karta.toml:5:16: `policy.hooks` must be true or false, not a text",
            "karta.toml:6:28: `policy.caps.turn_seconds` must be a whole number, not a number with a point",
            "karta.toml:7:9: `env.A` must be a text, not a whole number; put it in quotes",
            "karta.toml:8:9: `env.B` must be a text, not true or false; put it in quotes",
            "karta.toml:9:9: `env.C` must be a text, not a date",
            "karta.toml:10:9: `env.D` must be a text, or a secret; write it as `D = { secret = true, hosts = [\"api.example.com\"] }`",
            "karta.toml:11:9: `env.E.hosts` must name the hosts that the secret may go to",
            "karta.toml:12:9: `env.F.hosts` must name the hosts that the secret may go to",
            "karta.toml:12:35: `env.F.hosts`: `https://a` must be `host`, `host:port` or `*.domain`, in lower case, names beyond ASCII as `xn--…`",
        ]
    );
}

#[test]
fn values_that_mean_nothing_are_told() {
    assert_eq!(
        toml(
            "project = 'My Shop'\nharness = { type = 'claude', version = 'v2.1.330' }\nbuild.setup = ' '\n\
             build.egress = ['https://x.com/y']\npolicy.isolation = 'micro-vm'\npolicy.tools.deny = ['']\n\
             policy.caps = { turn_seconds = 0, session_cost_micros = -5 }\n"
        ),
        [
            "karta.toml:1:11: `project` must be 1 to 63 of a-z, 0-9 and -, not beginning with -",
            "karta.toml:2:20: `harness.type` must be one of `opencode`, `claude-code`, `scripted`, not `claude`; did you mean `claude-code`?",
            "karta.toml:2:40: `v2.1.330` is neither a version nor a constraint such as `2.1` or `>=2.1, <3`; did you mean `2.1.330`?",
            "karta.toml:3:15: `build.setup` is empty; leave it out if there is nothing to do",
            "karta.toml:4:17: `build.egress`: `https://x.com/y`: leave the scheme out, as in `api.example.com/v1/*`",
            "karta.toml:5:20: `policy.isolation` must be one of `none`, `process`, `namespace`, `microvm`, not `micro-vm`; did you mean `microvm`?",
            "karta.toml:6:22: `policy.tools.deny`: a tool is named by the harness's own word for it",
            "karta.toml:7:32: `policy.caps.turn_seconds` must be from 1 to 31622400",
            "karta.toml:7:57: `policy.caps.session_cost_micros` must be from 1 to 9223372036854775807",
        ]
    );
}

#[test]
fn what_is_no_toml_is_told_where_it_stops_being_toml() {
    let faults = toml("[harness]\ntype = \"opencode\nversion = 1.2.3\n");
    assert!(
        faults.iter().all(|fault| fault.starts_with("karta.toml:2:") || fault.starts_with("karta.toml:3:")),
        "{faults:?}"
    );
    assert!(faults.len() >= 2, "{faults:?}");
    let twice = toml("project = 'a'\nproject = 'b'\n");
    assert!(twice[0].starts_with("karta.toml:2:1: duplicate key"), "{twice:?}");
}

#[test]
fn names_that_are_not_the_folders_to_set_are_refused() {
    let refused = |name: &str| {
        let faults = told(manifest::parse(&format!("[env]\n\"{name}\" = 'x'\n")));
        assert!(faults[0].starts_with("karta.toml:2:1: `env."), "{faults:?}");
    };
    for name in [
        "PATH",
        "Path",
        "LD_PRELOAD",
        "DYLD_INSERT_LIBRARIES",
        "ANTHROPIC_API_KEY",
        "OPENAI_BASE_URL",
        "CLAUDE_CONFIG_DIR",
        "OPENCODE_PURE",
        "KARTA_X",
        "NODE_OPTIONS",
        "BASH_ENV",
        "GIT_SSH_COMMAND",
        "HTTPS_PROXY",
        "http_proxy",
        "XDG_CONFIG_HOME",
        "1A",
        "A-B",
        "A B",
        "",
        "Ä",
    ] {
        refused(name);
    }
    for name in ["A", "_a1", "NODE_ENV", "SHOP_PATH", "AWS_REGION", "TZ", "LDAP", "HOMEPAGE"] {
        assert!(manifest::parse(&format!("[env]\n{name} = 'x'\n")).is_ok(), "{name}");
    }
    // Whatever the adapters set themselves.
    let tree = Tree::from_iter([("CLAUDE.md", ""), ("karta.script.json", "{\"turns\":[]}")]);
    let gateway = Gateway {
        anthropic: "http://127.0.0.1:1".into(),
        openai: "http://127.0.0.1:1".into(),
        token: Secret::new("t".to_owned()),
        provider: "anthropic".into(),
        model: "m".into(),
        small_model: "s".into(),
    };
    let mut names = 0;
    for harness in registry::ALL {
        for (hooks, permission_mode) in [(true, PermissionMode::Default), (false, PermissionMode::AllowAll)] {
            let launch = Launch {
                program: "p",
                version: "1.0.0",
                workspace: "/w",
                home: "/h",
                temp: "/t",
                tree: &tree,
                title: "",
                native: Native::New("n".into()),
                gateway: &gateway,
                agent: None,
                permission_mode,
                thinking_budget: Some(1024),
                policy: FolderPolicy { hooks, mcp: hooks, denied_tools: &[] },
                env: &[],
            };
            for (name, _) in harness.command(&launch).unwrap().env {
                refused(&name);
                names += 1;
            }
        }
    }
    assert!(names > 40, "{names}");
}

#[test]
fn settings_may_say_all_of_this() {
    let own = r#"{
        // how sessions are
        "permission_mode": "accept_edits",
        "hidden_events": ["reasoning", "step_start",],
        "idle_timeout_seconds": 60,
        "thinking_budget_tokens": 4096,
    }"#;
    let others = r#"{"cli": {"hidden_event_types": ["reasoning", "step_start"]}, "runtime": {"permission_mode": "autonomous"},
        "harness": {"claude": {"idle_timeout_seconds": 60, "thinking_budget_tokens": 4096}}}"#;
    let expected = Defaults {
        permission_mode: Some(PermissionMode::AcceptEdits),
        hidden_events: vec!["reasoning".into(), "step_start".into()],
        idle_seconds: Some(60),
        thinking_budget_tokens: Some(4096),
    };
    assert_eq!(settings::parse(own), Ok(expected.clone()));
    let allow = Defaults { permission_mode: Some(PermissionMode::AllowAll), ..expected };
    assert_eq!(settings::parse(others), Ok(allow));
}

#[test]
fn settings_are_told_what_is_wrong_with_them() {
    assert_eq!(
        jsonc(
            "{\n  \"permission_mode\": \"bypass\", // no\n  \"hidden_events\": [\"reasonings\", \"text\"],\n  \"idle_seconds\": 5,\n  \"thinking_budget_tokens\": 5000000000\n}"
        ),
        [
            "karta.jsonc:2:22: `permission_mode` must be one of `default`, `accept_edits`, `plan`, `deny_all`, `allow_all`, not `bypass`",
            "karta.jsonc:3:21: `hidden_events`: `reasonings` is no type of events that can be hidden; those are `system`, `reasoning`, `tool_use`, `tool_result`, `step_start`, `step_finish`, `agent_changed`; did you mean `reasoning`?",
            "karta.jsonc:3:35: `hidden_events`: `text` is no type of events that can be hidden; those are `system`, `reasoning`, `tool_use`, `tool_result`, `step_start`, `step_finish`, `agent_changed`",
            "karta.jsonc:4:3: unknown key `idle_seconds`",
            "karta.jsonc:5:29: `thinking_budget_tokens` must be from 1 to 4294967295",
        ]
    );
    assert_eq!(
        jsonc(
            "{\"permission_mode\": \"plan\",\n\"runtime\": {\"permission_mode\": \"interactive\"}, \"cli\": {\"input_required_policy\": \"deny\"},\n\"profile\": {}}"
        ),
        [
            "karta.jsonc:2:32: `runtime.permission_mode` says the same as `permission_mode`; keep one of them",
            "karta.jsonc:2:56: `cli.input_required_policy` is not taken: whoever uses a session answers its questions; `permission_mode` says what is asked at all",
            "karta.jsonc:3:1: `profile` is not taken: who uses a session is known by the key or token",
        ]
    );
    assert_eq!(jsonc("{\"cli\": {},\n\"cli\": {}}"), ["karta.jsonc:2:1: the key `cli` is there twice"]);
    assert_eq!(jsonc("[]"), ["karta.jsonc:1:1: it must hold one object, not a list"]);
    assert_eq!(jsonc("{\n \"a\": 1,\n \"a\" 2}"), ["karta.jsonc:3:6: expected `:`"]);
    assert_eq!(jsonc("{\n// é\n\"ä\": nope}"), ["karta.jsonc:3:7: expected ident"]);
    assert_eq!(
        jsonc("{\"permission_mode\": null}"),
        ["karta.jsonc:1:21: `permission_mode` must be a text, not null"]
    );
}

proptest! {
    #[test]
    fn no_text_makes_them_panic(text in "([a-z]{1,8}|[\\[\\]{}=.,:\"'#/*\\\\é \n-]|harness|policy|env|true|1){0,40}") {
        for read in [manifest::parse(&text).err(), settings::parse(&text).err()].into_iter().flatten() {
            let lines = text.split('\n').count() as u64;
            prop_assert!(read.iter().all(|fault| fault.line.is_some_and(|line| line <= lines)), "{read:?}");
        }
    }
}
