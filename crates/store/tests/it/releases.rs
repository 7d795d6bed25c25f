//! Projects, releases, activations, canaries, previews, contents.

use karta_store::{
    Added, BuildLine, Built, CanaryRow, Deleted, Error, Flip, NewRelease, PackRow, ProjectKey, ProjectRow,
    ReleaseRow, Since, Wanted,
};
use karta_types::policy::Recipe;
use karta_types::release::{ActivationKind, Discovery, HarnessPin, ReleaseState};
use karta_types::session::ReleasePin;
use karta_types::{ProjectId, ReleaseId, SessionId};

use crate::{Rig, at};

impl Rig {
    fn project(&self) -> ProjectRow {
        ProjectRow {
            id: ProjectId::from_u128(9),
            org: self.org,
            slug: "app".into(),
            name: "app".into(),
            active_version: None,
            canary: None,
            parent: None,
            expires_at: None,
            source: None,
            created_at: at(1),
        }
    }

    async fn with_project() -> (Self, ProjectRow) {
        let rig = Self::new().await;
        let project = rig.project();
        rig.store.project_insert(&project, rig.told()).await.unwrap();
        (rig, project)
    }

    fn release(&self, number: u128, digest: &str) -> NewRelease {
        let name = format!("pack{number}");
        NewRelease {
            row: ReleaseRow {
                id: ReleaseId::from_u128(number),
                org: self.org,
                project: ProjectId::from_u128(9),
                version: 0,
                digest: digest.into(),
                harness: HarnessPin { kind: "scripted".into(), version: "1".into() },
                found: Discovery::default(),
                recipe: Recipe::default(),
                files: Some(name.clone()),
                built: None,
                commit: Some("c0ffee".into()),
                message: None,
                actor: "system:karta".into(),
                bytes: 10,
                file_count: 1,
                preview: None,
                state: ReleaseState::Ready,
                error: None,
                created_at: at(2),
            },
            pack: PackRow { pack: name, contents: vec![format!("{digest}-only"), "shared".into()] },
        }
    }

    async fn add(&self, number: u128, digest: &str) -> Added {
        self.store.release_insert(self.release(number, digest), self.told()).await.unwrap()
    }

    async fn flip(&self, wanted: Wanted) -> Flip {
        let project = ProjectId::from_u128(9);
        self.store.project_activate(self.org, project, wanted, self.told()).await.unwrap()
    }

    async fn found(&self) -> ProjectRow {
        let key = ProjectKey::Slug("app".into());
        self.store.project_get(self.org, &key).await.unwrap().unwrap()
    }
}

fn version(added: &Added) -> u64 {
    let (Added::New(row) | Added::Known(row)) = added;
    row.version
}

#[tokio::test]
async fn releases_are_numbered_and_one_is_active() {
    let (rig, project) = Rig::with_project().await;
    let twin = ProjectRow { id: ProjectId::from_u128(10), ..project.clone() };
    assert!(matches!(rig.store.project_insert(&twin, rig.told()).await, Err(Error::Conflict(_))));
    assert!(matches!(rig.add(1, "a").await, Added::New(row) if row.version == 1));
    assert!(matches!(rig.add(2, "b").await, Added::New(row) if row.version == 2));
    assert!(
        matches!(rig.add(3, "a").await, Added::Known(row) if row.version == 1 && row.id == ReleaseId::from_u128(1))
    );
    let read = rig.store.release_get(rig.org, project.id, 1).await.unwrap().unwrap();
    assert_eq!(read, ReleaseRow { version: 1, ..rig.release(1, "a").row });
    assert_eq!(rig.store.release_by_digest(rig.org, project.id, "b").await.unwrap().unwrap().version, 2);
    assert!(rig.store.release_get(rig.other, project.id, 1).await.unwrap().is_none());
    assert!(matches!(rig.flip(Wanted::Version(1)).await, Flip::Made(_)));
    assert!(matches!(rig.flip(Wanted::Version(2)).await, Flip::Made(_)));
    assert_eq!(rig.flip(Wanted::Version(7)).await, Flip::Missing);
    let foreign = rig.store.project_activate(rig.other, project.id, Wanted::Version(1), rig.told()).await;
    assert_eq!(foreign.unwrap(), Flip::Missing);
    let states: Vec<_> = rig
        .store
        .release_list(rig.org, project.id, None, 10)
        .await
        .unwrap()
        .iter()
        .map(|row| row.state)
        .collect();
    assert_eq!(states, [ReleaseState::Active, ReleaseState::Superseded]);
    assert!(matches!(rig.flip(Wanted::Previous).await, Flip::Made(made) if made.version == 1));
    assert_eq!(rig.flip(Wanted::Previous).await, Flip::Nothing);
    assert!(matches!(rig.flip(Wanted::Back(2)).await, Flip::Made(made) if made.version == 2));
    assert!(matches!(rig.flip(Wanted::Version(2)).await, Flip::Already(made) if made.seq == 4));
    assert_eq!(rig.store.activation_list(rig.other, project.id, None, 10).await.unwrap(), []);
    rig.flip(Wanted::Version(1)).await;
    // Two at once for one target: one makes it, the other finds it made.
    let (one, two) = tokio::join!(rig.flip(Wanted::Version(2)), rig.flip(Wanted::Version(2)));
    assert!(
        matches!((&one, &two), (Flip::Made(a), Flip::Already(b)) | (Flip::Already(a), Flip::Made(b)) if a == b)
    );
    assert_eq!(rig.found().await.active_version, Some(2));
    let key = ProjectKey::Slug("app".into());
    assert!(rig.store.project_get(rig.other, &key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_canary_begins_changes_and_ends() {
    let (rig, _) = Rig::with_project().await;
    for (number, digest) in [(1, "a"), (2, "b"), (3, "c")] {
        rig.add(number, digest).await;
    }
    let canary = |version, percent| Wanted::Canary { version, percent };
    assert_eq!(rig.flip(canary(1, 10)).await, Flip::Nothing, "nothing is active that it could take from");
    rig.flip(Wanted::Version(1)).await;
    assert_eq!(rig.flip(canary(1, 10)).await, Flip::Nothing, "it has all sessions already");
    assert_eq!(rig.flip(canary(9, 10)).await, Flip::Missing);
    assert_eq!(rig.flip(Wanted::Promote).await, Flip::Nothing);
    assert_eq!(rig.flip(Wanted::Abort).await, Flip::Nothing);
    let mut told = rig.told();
    told.at = at(50);
    let project = ProjectId::from_u128(9);
    rig.store.project_activate(rig.org, project, canary(2, 10), told).await.unwrap();
    assert_eq!(rig.found().await.canary, Some(CanaryRow { version: 2, percent: 10, since: at(50) }));
    assert_eq!(rig.flip(canary(2, 40)).await, Flip::Canary);
    let raised = CanaryRow { version: 2, percent: 40, since: at(50) };
    assert_eq!(rig.found().await.canary, Some(raised), "its first sessions stay its own");
    assert_eq!(rig.flip(Wanted::Abort).await, Flip::Canary);
    assert_eq!(rig.found().await.canary, None);
    rig.flip(canary(2, 10)).await;
    let promoted = rig.flip(Wanted::Promote).await;
    assert!(
        matches!(&promoted, Flip::Made(made) if made.version == 2 && made.kind == ActivationKind::Promote)
    );
    assert_eq!((rig.found().await.active_version, rig.found().await.canary), (Some(2), None));
    rig.flip(canary(3, 10)).await;
    assert!(matches!(rig.flip(Wanted::Previous).await, Flip::Made(made) if made.version == 1));
    assert_eq!(rig.found().await.canary, None, "another flip ends it");
}

#[tokio::test]
async fn what_is_used_is_not_deleted_and_a_rollback_passes_what_is() {
    let (rig, project) = Rig::with_project().await;
    for (number, digest) in [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")] {
        rig.add(number, digest).await;
    }
    for version in [1, 2, 3] {
        rig.flip(Wanted::Version(version)).await;
    }
    rig.flip(Wanted::Canary { version: 4, percent: 5 }).await;
    let preview = ProjectRow {
        id: ProjectId::from_u128(11),
        slug: "app@x".into(),
        parent: Some(project.id),
        active_version: Some(5),
        expires_at: Some(at(100)),
        ..project.clone()
    };
    rig.store.preview_put(&preview, rig.told()).await.unwrap().unwrap();
    let mut pinned = rig.session(1).await;
    pinned.id = SessionId::from_u128(2);
    pinned.release_pin = ReleasePin::Version(1);
    rig.store.session_insert(&pinned).await.unwrap();
    let delete =
        async |version| rig.store.release_delete(rig.org, project.id, version, rig.told()).await.unwrap();
    assert_eq!(delete(3).await, Deleted::Used("it is active"));
    assert_eq!(delete(4).await, Deleted::Used("it is a canary"));
    assert_eq!(delete(5).await, Deleted::Used("a preview shows it"));
    assert_eq!(delete(1).await, Deleted::Used("sessions are pinned to it"));
    assert_eq!(delete(9).await, Deleted::Missing);
    assert_eq!(delete(2).await, Deleted::Gone);
    assert_eq!(delete(2).await, Deleted::Gone);
    let late = ProjectRow { slug: "app@late".into(), active_version: Some(2), ..preview.clone() };
    assert_eq!(rig.store.preview_put(&late, rig.told()).await.unwrap(), None, "nothing shows what is gone");
    let foreign = rig.store.release_delete(rig.other, project.id, 1, rig.told()).await.unwrap();
    assert_eq!(foreign, Deleted::Missing);
    assert_eq!(rig.flip(Wanted::Version(2)).await, Flip::Unfit);
    assert!(matches!(rig.flip(Wanted::Previous).await, Flip::Made(made) if made.version == 1));
    // The same content again lives again, under its number.
    assert!(
        matches!(rig.add(6, "b").await, Added::New(row) if row.version == 2 && row.state == ReleaseState::Ready)
    );
}

#[tokio::test]
async fn a_build_ends_once_and_its_lines_are_kept_in_order() {
    let (rig, project) = Rig::with_project().await;
    let mut new = rig.release(1, "a");
    new.row.state = ReleaseState::Building;
    let added = rig.store.release_insert(new, rig.told()).await.unwrap();
    let Added::New(row) = added else { panic!("{added:?}") };
    assert_eq!(rig.flip(Wanted::Version(1)).await, Flip::Unfit);
    assert_eq!(rig.store.releases_building().await.unwrap(), std::slice::from_ref(&row));
    let line =
        |seq: u64, moment: i64| BuildLine { version: 1, seq, text: format!("line {seq}"), at: at(moment) };
    rig.store.build_lines_add(rig.org, project.id, vec![line(1, 10), line(2, 10)]).await.unwrap();
    rig.store.build_lines_add(rig.org, project.id, vec![line(2, 10), line(3, 20)]).await.unwrap();
    let read = async |since, before| {
        let lines = rig.store.build_lines(rig.org, project.id, Some(1), since, at(before), 10).await.unwrap();
        lines.iter().map(|line| line.seq).collect::<Vec<_>>()
    };
    assert_eq!(read(Since::At(at(0)), 100).await, [1, 2, 3]);
    assert_eq!(read(Since::At(at(11)), 100).await, [3]);
    assert_eq!(read(Since::Newest, 20).await, [2, 1]);
    assert!(
        rig.store
            .build_lines(rig.other, project.id, None, Since::Newest, at(100), 9)
            .await
            .unwrap()
            .is_empty()
    );
    let pack = PackRow { pack: "built".into(), contents: vec!["made".into()] };
    let well = Built::Well { pack, layer: "layer".into(), state: ReleaseState::Ready };
    let built = rig.store.release_built(&row, well, None).await.unwrap().unwrap();
    assert_eq!((built.served(), built.state), (Some("built"), ReleaseState::Ready));
    assert_eq!(rig.store.release_built(&row, Built::Failed("late".into()), None).await.unwrap(), None);
    assert_eq!(rig.store.layer_find(rig.org, project.id, "layer").await.unwrap(), Some(1));
    assert_eq!(rig.store.layer_find(rig.other, project.id, "layer").await.unwrap(), None);
    let mut failing = rig.release(2, "b");
    failing.row.state = ReleaseState::Building;
    let Added::New(row) = rig.store.release_insert(failing, rig.told()).await.unwrap() else { panic!() };
    let told = Some(rig.told());
    let failed = rig.store.release_built(&row, Built::Failed("no".into()), told).await.unwrap().unwrap();
    assert_eq!((failed.state, failed.error.as_deref()), (ReleaseState::Failed, Some("no")));
    assert_eq!(rig.flip(Wanted::Version(2)).await, Flip::Unfit);
    assert_eq!(version(&rig.add(3, "b").await), 2, "the same content begins anew");
}

#[tokio::test]
async fn contents_are_found_where_they_first_came() {
    let (rig, project) = Rig::with_project().await;
    rig.add(1, "a").await;
    rig.add(2, "b").await;
    let ask: Vec<String> = ["a-only", "b-only", "shared", "none"].map(str::to_owned).into();
    let found = rig.store.contents_find(rig.org, project.id, &ask).await.unwrap();
    let found: Vec<_> = found.iter().map(|(hash, pack)| (hash.as_str(), pack.as_str())).collect();
    assert_eq!(found, [("a-only", "pack1"), ("b-only", "pack2"), ("shared", "pack1")]);
    assert!(rig.store.contents_find(rig.other, project.id, &ask).await.unwrap().is_empty());
    assert_eq!(rig.store.packs(rig.org, project.id).await.unwrap(), ["pack1", "pack2"]);
    rig.store.pack_forget(rig.org, project.id, "pack1").await.unwrap();
    let found = rig.store.contents_find(rig.org, project.id, &ask).await.unwrap();
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["b-only"]);
    // More than fit into one statement.
    let many: Vec<String> = (0..1000).map(|number| format!("hash {number}")).collect();
    let mut large = rig.release(3, "c");
    large.pack.contents.clone_from(&many);
    rig.store.release_insert(large, rig.told()).await.unwrap();
    assert_eq!(rig.store.contents_find(rig.org, project.id, &many).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_preview_is_moved_listed_expired_and_removed_with_nothing_left() {
    let (rig, project) = Rig::with_project().await;
    rig.add(1, "a").await;
    rig.add(2, "b").await;
    let preview = |number: u128, shows: u64, until: i64| ProjectRow {
        id: ProjectId::from_u128(number),
        slug: "app@x".into(),
        parent: Some(project.id),
        active_version: Some(shows),
        expires_at: Some(at(until)),
        ..project.clone()
    };
    let first = rig.store.preview_put(&preview(11, 1, 100), rig.told()).await.unwrap().unwrap();
    let moved = rig.store.preview_put(&preview(12, 2, 200), rig.told()).await.unwrap().unwrap();
    assert_eq!((moved.id, moved.active_version, moved.expires_at), (first.id, Some(2), Some(at(200))));
    assert_eq!(
        rig.store.preview_list(rig.org, project.id, None, 9).await.unwrap(),
        std::slice::from_ref(&moved)
    );
    assert_eq!(rig.store.preview_list(rig.other, project.id, None, 9).await.unwrap(), []);
    assert_eq!(
        rig.store.project_list(rig.org, None, 9).await.unwrap().len(),
        1,
        "previews are no projects of the list"
    );
    assert_eq!(rig.store.previews_expired(at(199)).await.unwrap(), []);
    assert_eq!(rig.store.previews_expired(at(200)).await.unwrap(), std::slice::from_ref(&moved));
    assert!(!rig.store.project_remove(rig.org, project.id, rig.told()).await.unwrap(), "it has a preview");
    assert!(!rig.store.project_remove(rig.other, moved.id, rig.told()).await.unwrap());
    assert!(rig.store.project_remove(rig.org, moved.id, rig.told()).await.unwrap());
    rig.session(1).await;
    assert!(!rig.store.project_remove(rig.org, project.id, rig.told()).await.unwrap(), "it has a session");
    rig.store.session_erase(rig.org, SessionId::from_u128(1), rig.told()).await.unwrap();
    assert!(rig.store.project_remove(rig.org, project.id, rig.told()).await.unwrap());
    assert_eq!(rig.store.release_list(rig.org, project.id, None, 9).await.unwrap(), []);
    assert!(rig.store.packs(rig.org, project.id).await.unwrap().is_empty());
}
