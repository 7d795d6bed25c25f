//! What harnesses would refuse or leave out without a word: that it is told, and that they do.

use karta_harness::claude_code::ClaudeCode;
use karta_harness::opencode::OpenCode;
use karta_harness::{Fault, Harness, Tree};

type Files<'a> = &'a [(&'a str, &'a str)];

fn told(harness: &dyn Harness, files: Files<'_>) -> Vec<String> {
    let tree: Tree = files.iter().copied().collect();
    harness.refusals(&tree).iter().map(Fault::to_string).collect()
}

const SETTINGS: &str = ".claude/settings.json";
const MCP: &str = ".mcp.json";
const AGENT: &str = ".claude/agents/a.md";
const CONFIG: &str = "opencode.json";
const OPENCODE_AGENT: &str = ".opencode/agent/a.md";
const COMMAND: &str = ".opencode/command/a.md";
const SKILL: &str = ".opencode/skills/a/SKILL.md";

const WITHOUT: &str = "; Claude Code would go on without it, and say nothing";
const REFUSED: &str = "; OpenCode would refuse to work in this folder";

/// Folders that Claude Code takes as they are.
const CLAUDE_CODE_TAKES: &[Files<'_>] = &[
    &[(
        SETTINGS,
        r#"{"model": "opus", "env": {"A": 5, "B": "x"}, "somethingOfTomorrow": 1, "includeCoAuthoredBy": false,
            "permissions": {"allow": ["Read", "Bash(npm *)", "mcp__shop", "mcp__shop__*", "Bash(a)(b)"], "ask": ["*"], "defaultMode": "plan"},
            "hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "true"}]}]}}"#,
    )],
    &[(MCP, r#"{"mcpServers": {"a": {"command": "true", "args": ["y"], "env": {"A": "b"}, "more": 1}}}"#)],
    &[(AGENT, "---\nname: a\ndescription: b\nhooks: {}\ntools: 5\nmodel: x\n---\nc")],
    &[(AGENT, "---\nname: a\ndescription: use this: always\nhooks:\n  Stop:\n    - hooks: []\n---\nc")],
    &[(AGENT, "---\nname: \"5\"\ndescription: |\n  b\n---\nc")],
    &[(AGENT, "---\nname: a\ndescription: [b\n---\nc")],
];

/// One file each, and what is told of it, without what becomes of it.
const CLAUDE_CODE_LEAVES_OUT: &[(&str, &str, &[&str])] = &[
    (SETTINGS, "{\n  \"model\": 5\n}", &["2:12: `model` must be a text, not 5"]),
    (SETTINGS, "[]", &["1:1: it must be an object, not a list"]),
    (SETTINGS, r#"{"env": []}"#, &["1:9: `env` must be an object, not a list"]),
    (
        SETTINGS,
        r#"{"permissions": {"deny": "Bash"}}"#,
        &["1:26: `permissions.deny` must be a list, not `Bash`"],
    ),
    (SETTINGS, r#"{"hooks": {"PreToolUse": "x"}}"#, &["1:26: `hooks.PreToolUse` must be a list, not `x`"]),
    (
        SETTINGS,
        r#"{"hooks": {"PreToolUse": [{"matcher": "x"}]}}"#,
        &["1:27: `hooks.PreToolUse[0]` lacks `hooks`"],
    ),
    (
        SETTINGS,
        r#"{"hooks": {"PostToolUse": [{"hooks": [{"command": "x"}]}]}}"#,
        &["1:39: `hooks.PostToolUse[0].hooks[0]` lacks `type`"],
    ),
    (
        SETTINGS,
        r#"{"hooks": {"PreToolUse": [{"hooks": [{"type": "cmd", "command": "x"}]}]}}"#,
        &[
            "1:47: `hooks.PreToolUse[0].hooks[0].type` must be one of `command`, `prompt`, `agent`, `http`, `mcp_tool`, not `cmd`",
        ],
    ),
    (
        SETTINGS,
        r#"{"permissions": {"deny": [5, "Bash(", "bash", "", "mcp__a(x)", "Bash()", "Bash(x) "]}}"#,
        &[
            "1:27: `permissions.deny[0]` must be a text, not 5",
            "1:30: the rule `Bash(` must end with `)`",
            "1:39: the rule `bash` must begin with a tool's name, in capitals as Claude Code writes it",
            "1:47: the rule `` is empty",
            "1:51: the rule `mcp__a(x)` has a pattern, which rules of MCP don't",
            "1:64: the rule `Bash()` has empty parentheses",
            "1:74: the rule `Bash(x) ` must end with `)`",
        ],
    ),
    (
        SETTINGS,
        r#"{"permissions": {"allow": ["*", "mcp__*"]}}"#,
        &[
            "1:28: the rule `*` allows tools by a pattern, which only the tools of one MCP server may be",
            "1:33: the rule `mcp__*` allows tools by a pattern, which only the tools of one MCP server may be",
        ],
    ),
    (MCP, "[]", &["1:1: it must be an object, not a list"]),
    (MCP, r#"{"a": {"command": "x"}}"#, &["1:1: it lacks `mcpServers`"]),
    (MCP, r#"{"mcpServers": {"a": {"url": "http://x"}}}"#, &["1:22: `mcpServers.a` lacks `type`"]),
    (
        MCP,
        r#"{"mcpServers": {"a": {"command": 5}}}"#,
        &["1:34: `mcpServers.a.command` must be a text, not 5"],
    ),
    (MCP, r#"{"mcpServers": {"a": {"command": ""}}}"#, &["1:34: `mcpServers.a.command` must not be empty"]),
    (MCP, r#"{"mcpServers": {"a": {}}}"#, &["1:22: `mcpServers.a` lacks `command`, or `type` and `url`"]),
    (MCP, r#"{"mcpServers": {"a": null}}"#, &["1:22: `mcpServers.a` must be an object, not nothing"]),
    (
        MCP,
        r#"{"mcpServers": {"a": {"command": "x", "args": "y"}}}"#,
        &["1:47: `mcpServers.a.args` must be a list, not `y`"],
    ),
    (
        MCP,
        r#"{"mcpServers": {"a": {"command": "x", "env": {"A": 5}}}}"#,
        &["1:52: `mcpServers.a.env.A` must be a text, not 5"],
    ),
    (
        MCP,
        r#"{"mcpServers": {"a": {"type": "foo", "url": "x"}}}"#,
        &[
            "1:31: `mcpServers.a.type` must be one of `stdio`, `http`, `streamable-http`, `sse`, `ws`, not `foo`",
        ],
    ),
    (AGENT, "---\nname: a\n---\n", &["1: it lacks `description`"]),
    (AGENT, "---\ndescription: a\n---\n", &["1: it lacks `name`"]),
    (AGENT, "---\nname: 5\ndescription: a\n---\n", &["2: `name` must be a text"]),
    (AGENT, "---\nname: a\ndescription:\n---\n", &["3: `description` must be a text"]),
    (
        AGENT,
        "---\nname: a\ndescription: b\nhooks:\n  PreToolUse: x\n---\n",
        &["4: `hooks` must be lists of hooks by event"],
    ),
    (AGENT, "---\nname: a\ndescription: \"b\n---\n", &["3: a quote is not closed"]),
    (AGENT, "---\nname: a\ndescription: b\n", &["1: the front matter is not closed"]),
];

/// Folders that OpenCode takes as they are.
const OPENCODE_TAKES: &[Files<'_>] = &[
    &[(CONFIG, "")],
    &[
        (
            CONFIG,
            r##"{ // all of it
            "model": "{env:NOTHING}", "zzz": 1, "username": "{file:./me}", "default_agent": "plan",
            "agent": {"a": {"mode": "primary", "tools": {"x": true}, "anything": [1], "temperature": 0.5, "color": "#aabbcc"}},
            "mcp": {"a": {"type": "local", "command": ["x"]}, "b": {"enabled": false}, "c": {"type": "remote", "url": "https://x"}},
            "permission": {"bash": {"git *": "allow", "*": "ask"}, "edit": "deny"}, "plugin": [], "lsp": false, "formatter": {"x": {"disabled": true}},
            "provider": {"x": {"options": {"baseURL": "y", "more": 1}, "models": {"m": {"limit": {"context": 1, "output": 1}}}}}, }"##,
        ),
        ("me", "x"),
    ],
    &[(
        OPENCODE_AGENT,
        "---\ndescription: use this: always\nmode: subagent\ntools:\n  write: false\npermission:\n  bash:\n    \"git *\": allow\n---\n",
    )],
    &[(OPENCODE_AGENT, "a prompt alone")],
    &[(COMMAND, "---\ndescription: x\nsubtask: true\nmore: 1\n---\n")],
    &[(SKILL, "---\nname: a\ndescription: b\n---\n")],
];

const OPENCODE_REFUSES: &[(&str, &str, &[&str])] = &[
    (CONFIG, "{\n  \"model\": 5\n}", &["2:12: `model` must be a text, not 5"]),
    (
        CONFIG,
        r#"{"share": "never"}"#,
        &["1:11: `share` must be one of `manual`, `auto`, `disabled`, not `never`"],
    ),
    (CONFIG, r#"{"autoupdate": "x"}"#, &["1:16: `autoupdate` must be true or false, or `notify`, not `x`"]),
    (
        CONFIG,
        r#"{"agent": {"a": {"tools": {"x": 1}}}}"#,
        &["1:33: `agent.a.tools.x` must be true or false, not 1"],
    ),
    (
        CONFIG,
        r#"{"agent": {"a": {"steps": 0}}}"#,
        &["1:27: `agent.a.steps` is too small or too large a number"],
    ),
    (CONFIG, r#"{"mcp": {"a": {"command": ["x"]}}}"#, &["1:15: `mcp.a` lacks `type`"]),
    (
        CONFIG,
        r#"{"mcp": {"a": {"type": "local", "command": "x"}}}"#,
        &["1:44: `mcp.a.command` must be a list, not `x`"],
    ),
    (
        CONFIG,
        r#"{"mcp": {"a": {"type": "foo"}}}"#,
        &["1:24: `mcp.a.type` must be one of `local`, `remote`, not `foo`"],
    ),
    (
        CONFIG,
        r#"{"permission": {"edit": "x"}}"#,
        &["1:25: `permission.edit` must be one of `ask`, `allow`, `deny`, or an object, not `x`"],
    ),
    (CONFIG, r#"{"plugin": [5]}"#, &["1:13: `plugin[0]` must be a text, or a list, not 5"]),
    (CONFIG, r#"{"plugin": [["x", {}, 1]]}"#, &["1:13: `plugin[0]` has too few or too many items"]),
    (CONFIG, r#"{"command": {"a": {"description": "x"}}}"#, &["1:19: `command.a` lacks `template`"]),
    (CONFIG, "{ // {file:../x}\n}", &["1:6: `{file:../x}` leads out of the folder"]),
    (CONFIG, r#"{"username": "{file:./nope}"}"#, &["1:15: `{file:./nope}` is not there"]),
    (
        CONFIG,
        r#"{"username": "{file:~/nope}"}"#,
        &["1:15: `{file:~/nope}` lies in a home, which is empty for every session"],
    ),
    (
        OPENCODE_AGENT,
        "---\ntools: Read\ntemperature: hot\ncolor: red\ndisable: yes\ndescription: 5\n---\n",
        &[
            "2: `tools` must be an object, not `Read`",
            "3: `temperature` must be a number, not `hot`",
            "4: `color` must be a colour like `#FF5733`, or one of `primary`, `secondary`, `accent`, `success`, `warning`, `error`, `info`, not `red`",
            "5: `disable` must be true or false, not `yes`",
            "6: `description` must be a text, not 5",
        ],
    ),
    (OPENCODE_AGENT, "---\ntools: [read]\n---\n", &["2: `tools` must be an object, not a list"]),
    (OPENCODE_AGENT, "---\ntools:\n---\n", &["2: `tools` must be an object, not nothing"]),
    (OPENCODE_AGENT, "---\ntemperature: \"0.5\"\n---\n", &["2: `temperature` must be a number, not `0.5`"]),
    (COMMAND, "---\nsubtask: maybe\n---\n", &["2: `subtask` must be true or false, not `maybe`"]),
];

/// What OpenCode takes otherwise than it is meant.
const OPENCODE_MISTAKES: &[(&str, &str, &str)] = &[
    (CONFIG, r#"{"permision": {}}"#, "1:2: unknown key `permision`; did you mean `permission`?"),
    (
        CONFIG,
        r#"{"agent": {"a": {"mode": "prim"}}}"#,
        "1:26: `agent.a.mode` must be one of `subagent`, `primary`, `all`, not `prim`; did you mean `primary`?",
    ),
    (
        CONFIG,
        r#"{"default_agent": "nope"}"#,
        "1:19: the agent `nope` is not there; OpenCode would fail at the first message",
    ),
    (
        CONFIG,
        r#"{"default_agent": "a", "agent": {"a": {"mode": "subagent"}}}"#,
        "1:19: the agent `a` is only called by others; OpenCode would fail at the first message",
    ),
    (
        OPENCODE_AGENT,
        "---\ndescription: [x\n---\n",
        "2: the front matter can't be read: a bracket is not closed; OpenCode would take it for a part of the text",
    ),
    (
        COMMAND,
        "---\nsubtask: true\n",
        "1: the front matter is not closed; OpenCode would take all of the file for it",
    ),
    (
        SKILL,
        "---\nname: a\n---\n",
        "1: a skill needs `description`, a text; OpenCode would offer this skill to no agent",
    ),
    (
        SKILL,
        "---\nname: 5\ndescription: x\n---\n",
        "2: a skill needs `name`, a text; OpenCode would offer this skill to no agent",
    ),
    (
        SKILL,
        "x",
        "1: a skill needs front matter with `name` and `description`; OpenCode would offer this skill to no agent",
    ),
];

#[test]
fn what_harnesses_take_is_not_refused() {
    for files in CLAUDE_CODE_TAKES {
        assert_eq!(told(&ClaudeCode, files), Vec::<String>::new(), "{files:?}");
    }
    for files in OPENCODE_TAKES {
        assert_eq!(told(&OpenCode, files), Vec::<String>::new(), "{files:?}");
    }
}

#[test]
fn what_harnesses_do_not_take_is_told_with_its_place() {
    let all: [(&dyn Harness, _, _); 2] =
        [(&ClaudeCode, CLAUDE_CODE_LEAVES_OUT, WITHOUT), (&OpenCode, OPENCODE_REFUSES, REFUSED)];
    for (harness, cases, becomes) in all {
        for (file, text, faults) in cases {
            let faults: Vec<_> = faults.iter().map(|fault| format!("{file}:{fault}{becomes}")).collect();
            assert_eq!(told(harness, &[(file, text)]), faults);
        }
    }
    for (file, text, fault) in OPENCODE_MISTAKES {
        assert_eq!(told(&OpenCode, &[(file, text)]), [format!("{file}:{fault}")]);
    }
    for (file, text, fault) in [
        (
            SETTINGS,
            r#"{"hooks": {"PreTool": []}}"#,
            "1:12: unknown event of hooks `hooks.PreTool`; did you mean `PreToolUse`?",
        ),
        (SETTINGS, r#"{"hooks": {"Whenever": []}}"#, "1:12: unknown event of hooks `hooks.Whenever`"),
        (SETTINGS, r#"{"permision": {}}"#, "1:2: unknown key `permision`; did you mean `permissions`?"),
        (SETTINGS, r#"{"mcpServers": {}}"#, "1:2: `mcpServers` is not read here; put it in `.mcp.json`"),
        (
            SETTINGS,
            r#"{"permissions": {"defaultMode": "plam"}}"#,
            "1:33: `permissions.defaultMode` must be one of `acceptEdits`, `auto`, `bypassPermissions`, `default`, `dontAsk`, `plan`, not `plam`; did you mean `plan`?",
        ),
    ] {
        assert_eq!(told(&ClaudeCode, &[(file, text)]), [format!("{file}:{fault}")]);
    }
}

#[test]
fn keys_of_nobody_are_a_warning() {
    let tree: Tree =
        [(CONFIG, r#"{"zzz": 1, "mcp": {"a": {"type": "local", "command": ["x"], "qqqqqqq": 1}}}"#)]
            .into_iter()
            .collect();
    let warnings = OpenCode.discover(&tree).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "opencode.json: OpenCode knows no `mcp.a.qqqqqqq` and leaves it out",
            "opencode.json: OpenCode knows no `zzz` and leaves it out",
        ]
    );
}

/// The same with the real harnesses.
mod real {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpStream;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// The program of a harness that is installed under `KARTA_TEST_HARNESSES`.
    fn program(harness: &dyn Harness) -> PathBuf {
        let root = std::env::var("KARTA_TEST_HARNESSES").expect("`./test` says where the harnesses are");
        let version = Path::new(&root).join(harness.id()).join(harness.package().unwrap().default_version);
        let record = std::fs::read(version.join("installed.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        version.join(record["program"].as_str().unwrap())
    }

    fn write(root: &Path, files: Files<'_>) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    fn command(program: &Path, home: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").env("TMPDIR", home);
        command
    }

    /// Starts Claude Code in a folder and ends it again: what it answered, and what it noted.
    fn claude_code(program: &Path, files: Files<'_>) -> (String, String) {
        let root = tempfile::tempdir().unwrap();
        let (home, folder) = (root.path().join("home"), root.path().join("folder"));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        write(&folder, files);
        let mut child = command(program, &home)
            .args(["-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose"])
            .args(["--permission-prompt-tool=stdio", "--setting-sources=project,local", "--debug-to-stderr"])
            .current_dir(&folder)
            .env("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
            .env("ANTHROPIC_AUTH_TOKEN", "x")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .env("DISABLE_AUTOUPDATER", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let asked =
            r#"{"type":"control_request","request_id":"r","request":{"subtype":"initialize","hooks":null}}"#;
        writeln!(child.stdin.take().unwrap(), "{asked}").unwrap();
        let done = child.wait_with_output().unwrap();
        (
            String::from_utf8_lossy(&done.stdout).into_owned(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    }

    /// Whether it has the agent, has a server, and took all settings.
    fn taken(program: &Path, files: Files<'_>) -> (bool, bool, bool) {
        let (out, noted) = claude_code(program, files);
        let answer = out.lines().find(|line| line.contains("control_response")).expect(&noted);
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        let agents = answer["response"]["response"]["agents"].as_array().unwrap();
        let agent = agents.iter().any(|agent| matches!(agent["name"].as_str(), Some("a" | "5")));
        (agent, noted.contains("MCP server \""), !noted.contains("Invalid setting skipped"))
    }

    #[test]
    #[ignore = "needs the real harnesses: ./test runs it"]
    fn claude_code_goes_on_without_it() {
        let program = program(&ClaudeCode);
        for files in CLAUDE_CODE_TAKES {
            let (agent, server, settings) = taken(&program, files);
            let is = |file: &str| files[0].0 == file;
            assert_eq!((agent, server, settings), (is(AGENT), is(MCP), true), "{files:?}");
        }
        for (file, text, _) in CLAUDE_CODE_LEAVES_OUT {
            let (agent, server, settings) = taken(&program, &[(file, text)]);
            assert!(!agent && !server, "{text}");
            assert_eq!(settings, *file != SETTINGS, "{text}");
        }
    }

    /// A server of OpenCode, ended when it is dropped.
    struct Server {
        child: Child,
        address: String,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    impl Server {
        fn start(home: &Path) -> Self {
            let mut child = command(&program(&OpenCode), home)
                .args(["serve", "--hostname", "127.0.0.1", "--port", "0"])
                .current_dir(home)
                .envs(
                    ["MODELS_FETCH", "AUTOUPDATE", "SHARE", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "CLAUDE_CODE"]
                        .map(|what| (format!("OPENCODE_DISABLE_{what}"), "1")),
                )
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            let mut said =
                lines.filter_map(|line| Some(line.split_once("listening on http://")?.1.to_owned()));
            let address = said.next().expect("it says where it listens");
            Self { child, address }
        }

        /// The status of the answer for a folder.
        fn status(&self, folder: &Path) -> String {
            let mut stream = TcpStream::connect(&self.address).unwrap();
            let path = format!("/config?directory={}", folder.display());
            write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address)
                .unwrap();
            // It keeps the connection open whatever is asked: the first line is enough.
            let mut first = String::new();
            BufReader::new(stream).read_line(&mut first).unwrap();
            first.split(' ').nth(1).unwrap_or_default().to_owned()
        }
    }

    #[test]
    #[ignore = "needs the real harnesses: ./test runs it"]
    fn opencode_refuses_to_work() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        std::fs::create_dir_all(&home).unwrap();
        let server = Server::start(&home);
        let mut number = 0;
        let mut status = |files: Files<'_>| {
            number += 1;
            let folder = root.path().join(format!("{number}"));
            write(&folder, files);
            server.status(&folder)
        };
        for files in OPENCODE_TAKES {
            assert_eq!(status(files), "200", "{files:?}");
        }
        for (file, text, _) in OPENCODE_REFUSES {
            assert_ne!(status(&[(file, text)]), "200", "{text}");
        }
    }
}
