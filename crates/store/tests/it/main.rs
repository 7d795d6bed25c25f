//! The store over a real database.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails")]

mod checkpoints;
mod ledger;
mod releases;

use std::sync::Arc;

use bytes::Bytes;
use karta_store::{
    AuditEntry, Chunk, Commit, Durability, Error, Idem, Keyring, Options, OrgRow, Reply, SessionFilter,
    SessionRow, Store, TurnChange, TurnEnd, TurnRow, UsageKey, UsageQuery, UsageRow,
};
use karta_types::event::{Answerer, AskKind, InputRequired};
use karta_types::message::Decision;
use karta_types::rng::{Seeded, System};
use karta_types::session::{Isolation, PermissionMode, ReleasePin, SessionStatus, Turn, TurnState};
use karta_types::time::Fixed;
use karta_types::usage::Metered;
use karta_types::{
    AuditId, Micros, ModelCallId, OrgId, ProjectId, RequestId, Seq, SessionId, Timestamp, TurnId, Usage,
};
use tempfile::TempDir;

const MARK: &str = "marked-words-that-must-be-sealed";

struct Rig {
    store: Store,
    folder: TempDir,
    org: OrgId,
    other: OrgId,
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

async fn open(folder: &std::path::Path, keys: Keyring) -> Store {
    let url = match std::env::var("KARTA_TEST_POSTGRES") {
        // A database of its own for each folder.
        Ok(server) => {
            let name = folder.file_name().unwrap().as_encoded_bytes();
            let name = name.iter().fold(String::new(), |name, byte| format!("{name}{byte:02x}"));
            format!("{server}/store_{name}")
        }
        Err(_) => format!("sqlite:{}", folder.join("karta.db").display()),
    };
    Store::open(Options { url, durability: Durability::Process, keys, data_plane: false }).await.unwrap()
}

impl Rig {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), Keyring::in_memory(&Seeded::new(7))).await;
        let (org, other) = (OrgId::from_u128(1), OrgId::from_u128(2));
        for (id, slug) in [(org, "one"), (other, "two")] {
            let row = OrgRow { id, slug: slug.into(), name: slug.into(), created_at: at(1) };
            store.org_insert(&row).await.unwrap();
        }
        Self { store, folder, org, other }
    }

    fn told(&self) -> AuditEntry {
        AuditEntry {
            id: AuditId::new(&Fixed::new(at(1)), &System),
            org: self.org,
            at: at(1),
            actor: "system:karta".into(),
            action: "test.write".into(),
            resource: "it".into(),
            request: None,
            address: None,
            before: None,
            after: None,
            reason: None,
        }
    }

    async fn session(&self, number: u128) -> SessionRow {
        let row = SessionRow {
            id: SessionId::from_u128(number),
            org: self.org,
            project: ProjectId::from_u128(9),
            key: None,
            status: SessionStatus::Idle,
            title: Some("t".into()),
            metadata: [("team".to_owned(), "red".into())].into(),
            current_agent: None,
            participants: Vec::new(),
            permission_mode: PermissionMode::Plan,
            release_pin: ReleasePin::Version(3),
            pinned_version: None,
            last_version: None,
            isolation: Isolation::Process,
            end_user_id: Some("u".into()),
            parent_id: None,
            native: None,
            harness: Some("scripted".into()),
            head: Seq::START,
            generation: 0,
            usage: Metered::default(),
            created_at: at(5),
            updated_at: at(5),
            expires_at: None,
        };
        self.store.session_insert(&row).await.unwrap();
        row
    }
}

fn step(row: &SessionRow, head: u64, count: u64) -> Commit {
    let chunk = Chunk {
        turn: Some(TurnId::from_u128(row.id.as_u128())),
        first: Seq(head + 1),
        last: Seq(head + count),
        frames: Bytes::from(format!("{MARK} {head}")),
        raw: Some(Bytes::from_static(MARK.as_bytes())),
        flags: 1,
    };
    Commit {
        org: row.org,
        session: row.id,
        generation: row.generation,
        head: Seq(head),
        at: at(10),
        chunk: Some(chunk),
        status: None,
        native: None,
        agent: None,
        last_version: None,
        pinned_version: None,
        turn: None,
        asked: Vec::new(),
        told: Vec::new(),
        resolved: Vec::new(),
    }
}

fn turn(row: &SessionRow, state: TurnState) -> TurnRow {
    TurnRow {
        org: row.org,
        key: None,
        turn: Turn {
            id: TurnId::from_u128(row.id.as_u128()),
            session_id: row.id,
            release: None,
            agent: Some("a".into()),
            participant: None,
            state,
            stop_reason: None,
            error: None,
            usage: Metered::default(),
            models: Vec::new(),
            created_at: at(6),
            started_at: None,
            first_text_at: None,
            ended_at: None,
        },
    }
}

#[tokio::test]
async fn a_session_reads_back_and_a_foreign_one_is_not_there() {
    let rig = Rig::new().await;
    let row = rig.session(1).await;
    assert_eq!(rig.store.session_get(rig.org, row.id).await.unwrap().unwrap(), row);
    assert!(rig.store.session_get(rig.other, row.id).await.unwrap().is_none());
    let filter = SessionFilter { metadata: vec![("team".into(), "red".into())], ..SessionFilter::default() };
    assert_eq!(rig.store.session_list(rig.org, &filter, None, 10).await.unwrap(), std::slice::from_ref(&row));
    assert!(rig.store.session_list(rig.other, &filter, None, 10).await.unwrap().is_empty());
    assert!(rig.store.journal_read(rig.other, row.id, Seq::START, 100).await.unwrap().is_empty());
    assert!(matches!(rig.store.session_own(rig.other, row.id, at(2)).await, Err(Error::NotFound)));
    assert!(!rig.store.session_erase(rig.other, row.id, rig.told()).await.unwrap());
    assert!(rig.store.session_erase(rig.org, row.id, rig.told()).await.unwrap());
    assert!(rig.store.session_get(rig.org, row.id).await.unwrap().is_none());
}

#[tokio::test]
async fn only_the_owner_appends_and_only_at_the_end() {
    let rig = Rig::new().await;
    let row = rig.session(1).await;
    let first = rig.store.session_own(rig.org, row.id, at(2)).await.unwrap();
    rig.store.commit(step(&first, 0, 3)).await.unwrap();
    assert!(matches!(rig.store.commit(step(&first, 0, 1)).await, Err(Error::Fenced)), "not at the end");
    let second = rig.store.session_own(rig.org, row.id, at(3)).await.unwrap();
    assert_eq!((second.head, second.generation), (Seq(3), first.generation + 1));
    assert!(
        matches!(rig.store.commit(step(&first, 3, 1)).await, Err(Error::Fenced)),
        "not the owner any more"
    );
    rig.store.commit(step(&second, 3, 1)).await.unwrap();
    let chunks = rig.store.journal_read(rig.org, row.id, Seq(2), 1 << 20).await.unwrap();
    assert_eq!(
        chunks.iter().map(|chunk| (chunk.first.0, chunk.last.0)).collect::<Vec<_>>(),
        [(1, 3), (4, 4)]
    );
    assert_eq!(chunks[1].frames, format!("{MARK} 3"));
}

#[tokio::test]
async fn one_bad_write_among_many_spoils_nothing() {
    let rig = Rig::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=40u128 {
        let row = rig.session(number).await;
        let row = rig.store.session_own(rig.org, row.id, at(2)).await.unwrap();
        let store = rig.store.clone();
        tasks.spawn(async move {
            let mut refused = 0;
            for head in 0..25 {
                // Every fifth is of an owner that never was.
                if head % 5 == 0 {
                    let stranger = SessionRow { generation: 99, ..row.clone() };
                    let wrong = store.commit(step(&stranger, head, 1)).await;
                    refused += usize::from(matches!(wrong, Err(Error::Fenced)));
                }
                store.commit(step(&row, head, 1)).await.unwrap();
            }
            refused
        });
    }
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap(), 5);
    }
    for number in 1..=40u128 {
        let id = SessionId::from_u128(number);
        let chunks = rig.store.journal_read(rig.org, id, Seq::START, 1 << 20).await.unwrap();
        assert_eq!(chunks.iter().map(|chunk| chunk.last.0).collect::<Vec<_>>(), (1..=25).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_turn_is_recorded_with_its_session() {
    let rig = Rig::new().await;
    let row = rig.session(1).await;
    let row = rig.store.session_own(rig.org, row.id, at(2)).await.unwrap();
    let mut begin = step(&row, 0, 1);
    begin.turn = Some(TurnChange::Begin(turn(&row, TurnState::Running)));
    begin.status = Some(SessionStatus::Waiting);
    let request_id = RequestId::from_u128(5);
    begin.asked.push(InputRequired {
        request_id,
        kind: AskKind::ToolUse,
        tool: "Bash".into(),
        tool_input: MARK.into(),
        message: String::new(),
        options: Vec::new(),
        expires_at: None,
    });
    rig.store.commit(begin).await.unwrap();
    assert_eq!(rig.store.turns_unfinished().await.unwrap().len(), 1);
    let waiting = rig.store.inputs_pending(rig.org, Some(row.id), None, 10).await.unwrap();
    assert_eq!(waiting[0].input.tool_input, MARK);
    assert!(rig.store.inputs_pending(rig.other, None, None, 10).await.unwrap().is_empty());
    assert_eq!(rig.store.input_state(rig.org, row.id, request_id).await.unwrap(), Some(false));

    let usage = Usage { input_tokens: 3, output_tokens: 4, cache_read_tokens: 5, cache_write_tokens: 6 };
    let mut end = step(&row, 1, 1);
    end.status = Some(SessionStatus::Idle);
    end.resolved.push((request_id, Decision::Deny, Answerer { kind: "key".into(), id: "k".into() }));
    end.turn = Some(TurnChange::End(TurnEnd {
        id: TurnId::from_u128(1),
        state: TurnState::Completed,
        stop_reason: Some("end_turn".into()),
        error: None,
        usage: Metered::new(&usage, Micros::new(70)),
        models: vec!["m".into()],
        first_text_at: Some(at(7)),
        ended_at: at(8),
    }));
    rig.store.commit(end).await.unwrap();
    let read = rig.store.session_get(rig.org, row.id).await.unwrap().unwrap();
    assert_eq!(
        (read.status, read.usage.total_tokens, read.usage.cost_micros.get()),
        (SessionStatus::Idle, 18, 70)
    );
    let ended = rig.store.turn_get(rig.org, row.id, TurnId::from_u128(1)).await.unwrap().unwrap().turn;
    assert_eq!(
        (ended.state, ended.usage.total_tokens, ended.models),
        (TurnState::Completed, 18, vec!["m".to_owned()])
    );
    assert!(rig.store.turns_unfinished().await.unwrap().is_empty());
    assert_eq!(rig.store.input_state(rig.org, row.id, request_id).await.unwrap(), Some(true));
    assert!(rig.store.turn_get(rig.other, row.id, TurnId::from_u128(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn the_journal_of_a_running_turn_is_never_expired() {
    let rig = Rig::new().await;
    for (number, state) in [(1, TurnState::Running), (2, TurnState::Completed)] {
        let row = rig.session(number).await;
        let row = rig.store.session_own(rig.org, row.id, at(2)).await.unwrap();
        let mut begin = step(&row, 0, 1);
        begin.turn = Some(TurnChange::Begin(turn(&row, TurnState::Running)));
        rig.store.commit(begin).await.unwrap();
        if state.ended() {
            let mut end = step(&row, 1, 1);
            end.turn = Some(TurnChange::End(TurnEnd {
                id: TurnId::from_u128(number),
                state,
                stop_reason: None,
                error: None,
                usage: Metered::default(),
                models: Vec::new(),
                first_text_at: None,
                ended_at: at(8),
            }));
            rig.store.commit(end).await.unwrap();
        }
    }
    assert_eq!(rig.store.journal_expire(at(100), 1000).await.unwrap(), 2);
    assert_eq!(rig.store.journal_floor(rig.org, SessionId::from_u128(1)).await.unwrap(), Some(Seq(1)));
    assert_eq!(rig.store.journal_floor(rig.org, SessionId::from_u128(2)).await.unwrap(), None);
}

#[tokio::test]
async fn replies_are_kept_once_and_expire() {
    let rig = Rig::new().await;
    let begin = |print: u8, now: i64| rig.store.idem_begin(rig.org, "k", [print; 32], at(now), at(now + 100));
    assert_eq!(begin(1, 0).await.unwrap(), Idem::New);
    assert_eq!(begin(1, 1).await.unwrap(), Idem::Running);
    assert_eq!(begin(2, 1).await.unwrap(), Idem::Mismatch);
    assert_eq!(rig.store.idem_begin(rig.other, "k", [3; 32], at(1), at(9)).await.unwrap(), Idem::New);
    let reply = Reply {
        status: 201,
        content_type: "c".into(),
        body: Bytes::from_static(MARK.as_bytes()),
        stream: None,
    };
    rig.store.idem_finish(rig.org, "k", &reply).await.unwrap();
    assert_eq!(begin(1, 2).await.unwrap(), Idem::Done(reply));
    assert_eq!(begin(2, 500).await.unwrap(), Idem::New, "past its time");
    assert_eq!(rig.store.idem_abandon_all_running().await.unwrap(), 2);
    assert_eq!(begin(4, 501).await.unwrap(), Idem::New);
}

#[tokio::test]
async fn usage_is_counted_once_and_sums_agree() {
    let rig = Rig::new().await;
    let row = |number: u128, model: &str, day: i64| UsageRow {
        id: ModelCallId::from_u128(number),
        org: rig.org,
        project: ProjectId::from_u128(9),
        session: SessionId::from_u128(1),
        turn: Some(TurnId::from_u128(number / 2)),
        key: None,
        token: None,
        end_user: None,
        release: Some(1),
        provider: "anthropic".into(),
        model: model.into(),
        usage: Usage { input_tokens: 10, output_tokens: 1, ..Usage::default() },
        cost: Micros::new(5),
        priced: true,
        at: at(day * 86_400_000_000),
    };
    for number in 2..8 {
        let call = row(number, if number < 4 { "a" } else { "b" }, i64::from(number > 5));
        assert!(rig.store.hold_settle(call.clone()).await.unwrap());
        assert!(!rig.store.hold_settle(call.clone()).await.unwrap(), "the same again is nothing");
    }
    let total = rig.store.usage_total(rig.org).await.unwrap();
    assert_eq!((total.total_tokens, total.cost_micros.get()), (66, 30));
    assert_eq!(rig.store.usage_total(rig.other).await.unwrap(), Metered::default());
    let query = UsageQuery { group_by: vec![UsageKey::Model, UsageKey::Day], ..UsageQuery::default() };
    let groups = rig.store.usage_group(rig.org, &query).await.unwrap();
    let shown: Vec<_> = groups
        .iter()
        .map(|group| (group.keys.join(" "), group.turns, group.metered.cost_micros.get()))
        .collect();
    assert_eq!(
        shown,
        [
            ("a 1970-01-01".to_owned(), 1, 10),
            ("b 1970-01-01".to_owned(), 1, 10),
            ("b 1970-01-02".to_owned(), 1, 10)
        ]
    );
    let (usage, cost, models) = rig.store.usage_of_turn(rig.org, TurnId::from_u128(1)).await.unwrap();
    assert_eq!((usage.input_tokens, cost.get(), models), (20, 10, vec!["a".to_owned()]));
}

#[tokio::test]
async fn what_is_on_disk_is_sealed_and_opens_with_its_key_only() {
    let rig = Rig::new().await;
    let row = rig.session(1).await;
    let row = rig.store.session_own(rig.org, row.id, at(2)).await.unwrap();
    rig.store.commit(step(&row, 0, 1)).await.unwrap();
    let reply = Reply {
        status: 200,
        content_type: String::new(),
        body: Bytes::from_static(MARK.as_bytes()),
        stream: None,
    };
    rig.store.idem_begin(rig.org, "k", [0; 32], at(0), at(100)).await.unwrap();
    rig.store.idem_finish(rig.org, "k", &reply).await.unwrap();
    rig.store.close().await;
    for entry in std::fs::read_dir(rig.folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(MARK.len()).any(|part| part == MARK.as_bytes()));
    }
    let wrong = open(rig.folder.path(), Keyring::in_memory(&Seeded::new(8))).await;
    let read = wrong.journal_read(rig.org, row.id, Seq::START, 100).await;
    assert!(matches!(read, Err(Error::Sealed(_))), "{read:?}");
    wrong.close().await;
    let right = open(rig.folder.path(), Keyring::in_memory(&Seeded::new(7))).await;
    let chunks = right.journal_read(rig.org, row.id, Seq::START, 100).await.unwrap();
    assert_eq!(chunks[0].frames, format!("{MARK} 0"));
}

#[tokio::test]
async fn what_waits_at_the_close_is_written() {
    let rig = Rig::new().await;
    let row = rig.session(1).await;
    let row = rig.store.session_own(rig.org, row.id, at(2)).await.unwrap();
    let store = Arc::new(rig.store.clone());
    let commit = store.commit(step(&row, 0, 1));
    let (written, ()) = tokio::join!(commit, store.close());
    written.unwrap();
    assert!(matches!(rig.store.commit(step(&row, 1, 1)).await, Err(Error::Closed)));
    let again = open(rig.folder.path(), Keyring::in_memory(&Seeded::new(7))).await;
    assert_eq!(again.session_get(rig.org, row.id).await.unwrap().unwrap().head, Seq(1));
}
