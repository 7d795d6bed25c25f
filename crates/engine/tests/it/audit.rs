//! The audit log, attacked in its own database.

use karta_engine::control::keys::{Environment, NewKey};
use karta_engine::{Builder, Engine, Principal, Settings};
use karta_types::scope::Scopes;
use rusqlite::Connection;

async fn open(data: &std::path::Path) -> Engine {
    let settings = Settings { data: data.to_owned(), ..Settings::default() };
    Builder::new(settings).open().await.unwrap()
}

/// Five entries, their end signed, and one more.
async fn written(data: &std::path::Path) -> Principal {
    let engine = open(data).await;
    let who = Principal::system(engine.ensure_org("one").await.unwrap());
    for number in 0..6 {
        if number == 5 {
            assert_eq!(engine.audit_seal().await.unwrap(), 1);
        }
        let new = NewKey {
            name: format!("key {number}"),
            environment: Environment::Test,
            scopes: Scopes::all(),
            project: None,
            expires_at: None,
        };
        engine.create_key(&who, new).await.unwrap();
    }
    let verdict = engine.audit_verify(&who).await.unwrap();
    assert_eq!((verdict.intact, verdict.rows, verdict.seals), (true, 6, 1));
    engine.shutdown().await;
    who
}

#[tokio::test]
async fn whatever_is_done_to_the_log_is_named() {
    let attacks: &[(&str, &[u64])] = &[
        ("UPDATE audit SET actor = 'key:somebody' WHERE seq = 3", &[3]),
        ("UPDATE audit SET reason = '' WHERE seq = 2", &[2]),
        ("DELETE FROM audit WHERE seq = 4", &[4]),
        // The end is cut off: the recorded end is missing.
        ("DELETE FROM audit WHERE seq = 6", &[6]),
        // ... and with the record of it, a signed end is.
        (
            "DELETE FROM audit WHERE seq >= 5; \
             UPDATE audit_head SET seq = 4, hash = (SELECT hash FROM audit WHERE seq = 4)",
            &[5],
        ),
        (
            "UPDATE audit SET seq = seq + 100 WHERE seq IN (2, 3); UPDATE audit SET seq = 105 - seq WHERE seq > 100",
            &[2, 3],
        ),
        ("UPDATE audit_seal SET hash = x'00'", &[]),
        ("UPDATE audit_seal SET at = at + 1", &[5]),
    ];
    for (attack, named) in attacks {
        let data = tempfile::tempdir().unwrap();
        let who = written(data.path()).await;
        let database = Connection::open(data.path().join("karta.db")).unwrap();
        // As it is, the database refuses.
        assert!(database.execute("UPDATE audit SET actor = 'x'", []).is_err());
        assert!(database.execute("DELETE FROM audit", []).is_err());
        assert!(database.execute("DELETE FROM audit_seal", []).is_err());
        for trigger in ["audit_no_update", "audit_no_delete", "audit_seal_no_update", "audit_seal_no_delete"]
        {
            database.execute_batch(&format!("DROP TRIGGER {trigger}")).unwrap();
        }
        database.execute_batch(attack).unwrap();
        drop(database);
        let engine = open(data.path()).await;
        match engine.audit_verify(&who).await {
            Ok(verdict) => {
                assert!(!verdict.intact, "{attack}");
                for seq in *named {
                    assert!(
                        verdict.faults.iter().any(|fault| fault.seq == *seq),
                        "{attack}: {:?}",
                        verdict.faults
                    );
                }
            }
            // A hash that is none is not even readable.
            Err(error) => assert!(named.is_empty(), "{attack}: {}", error.chain()),
        }
        engine.shutdown().await;
    }
}
