//! Checkpoints and their keys.

use karta_store::{CheckpointRow, StateKeyRow};

use super::*;

fn key(org: OrgId, id: &str, kek: &str) -> StateKeyRow {
    StateKeyRow {
        id: id.to_owned(),
        org,
        part: String::new(),
        kek: kek.to_owned(),
        wrapped: vec![7; 60],
        created_at: at(1),
    }
}

fn checkpoint(org: OrgId, session: SessionId, seq: u64, key: &str) -> CheckpointRow {
    CheckpointRow {
        org,
        session,
        seq,
        turn: seq.is_multiple_of(2).then(|| TurnId::from_u128(u128::from(seq))),
        key: key.to_owned(),
        pack: format!("pack{seq}"),
        place: 10,
        length: 20,
        packs: vec!["pack0".to_owned(), format!("pack{seq}")],
        files: 3,
        bytes: 1 << 40,
        at: at(5),
    }
}

#[tokio::test]
async fn only_the_owner_adds_and_so_many_are_kept() {
    let rig = Rig::new().await;
    let session = rig.session(1).await.id;
    let row = rig.store.session_own(rig.org, session, at(2)).await.unwrap();
    let generation = u64::try_from(row.generation).unwrap();
    let store = &rig.store;
    let add = async |row: CheckpointRow, generation| store.checkpoint_add(row, generation, 3).await;
    let early = add(checkpoint(rig.org, session, 1, "k1"), generation).await;
    assert!(matches!(early, Err(Error::Fenced)), "no key, no checkpoint");
    assert_eq!(store.state_key_add(key(rig.org, "k1", "kek1")).await.unwrap().id, "k1");
    assert_eq!(
        store.state_key_add(key(rig.org, "k2", "kek1")).await.unwrap().id,
        "k1",
        "the first one stays"
    );
    for seq in 1..=5 {
        let left = add(checkpoint(rig.org, session, seq, "k1"), generation).await.unwrap();
        assert_eq!(left[0], checkpoint(rig.org, session, seq, "k1"));
        assert!(left.len() <= 3);
    }
    for (what, row, generation) in [
        ("an older owner", checkpoint(rig.org, session, 6, "k1"), generation - 1),
        ("another organisation", checkpoint(rig.other, session, 6, "k1"), generation),
        ("another key", checkpoint(rig.org, session, 6, "k2"), generation),
        ("no session", checkpoint(rig.org, SessionId::from_u128(99), 6, "k1"), generation),
    ] {
        assert!(matches!(add(row, generation).await, Err(Error::Fenced)), "{what}");
    }
    let seqs: Vec<u64> =
        store.checkpoint_list(rig.org, session).await.unwrap().iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [5, 4, 3]);
    assert!(store.checkpoint_list(rig.other, session).await.unwrap().is_empty());
    store.session_erase(rig.org, session, rig.told()).await.unwrap();
    assert!(store.checkpoint_list(rig.org, session).await.unwrap().is_empty());
}

#[tokio::test]
async fn keys_are_wrapped_anew_and_destroyed() {
    let rig = Rig::new().await;
    let store = &rig.store;
    store.state_key_add(key(rig.org, "k1", "kek1")).await.unwrap();
    store.state_key_add(key(rig.other, "k2", "kek1")).await.unwrap();
    let old = store.state_keys_not_under("kek2", 10).await.unwrap();
    assert_eq!(old.len(), 2);
    store.state_key_rewrap(&old[0], "kek2".into(), vec![9; 60]).await.unwrap();
    // The same again has nothing to do: the old wrapping is not there any more.
    store.state_key_rewrap(&old[0], "kek3".into(), vec![1; 60]).await.unwrap();
    let now = store.state_key_get(rig.org, "").await.unwrap().unwrap();
    assert_eq!((now.kek.as_str(), &now.wrapped), ("kek2", &vec![9; 60]));
    let session = rig.session(1).await.id;
    let row = rig.store.session_own(rig.org, session, at(2)).await.unwrap();
    let generation = u64::try_from(row.generation).unwrap();
    store.checkpoint_add(checkpoint(rig.org, session, 1, "k1"), generation, 3).await.unwrap();
    assert_eq!(store.state_keys_destroy(rig.org, rig.told()).await.unwrap(), 1);
    assert!(store.state_key_get(rig.org, "").await.unwrap().is_none());
    assert!(store.checkpoint_list(rig.org, session).await.unwrap().is_empty());
    assert!(store.state_key_get(rig.other, "").await.unwrap().is_some(), "others keep theirs");
}
