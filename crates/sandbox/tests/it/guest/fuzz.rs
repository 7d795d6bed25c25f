//! Both sides against anything at all.

use karta_guest::proto::frame::{self, Kind};
use karta_guest::proto::message::Request;
use karta_sandbox::guest::Link;
use karta_sandbox::uplink::{Nowhere, Service};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Frames of any kind on few streams, with what may or may not belong in them.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec![
        Kind::Hello,
        Kind::Open,
        Kind::Answer,
        Kind::Data,
        Kind::Eof,
        Kind::Credit,
        Kind::Stop,
        Kind::Signal,
        Kind::Exit,
    ]);
    let payload = prop_oneof![
        prop::collection::vec(0u8..6, 0..12),
        prop::collection::vec(any::<u8>(), 0..64),
        Just(vec![0]),
        Just(vec![1, 0, 0, 0]),
        Just(Service::Model.port().to_le_bytes().to_vec()),
        Just(karta_guest::proto::message::Answer::Done(Vec::new()).encode()),
    ];
    prop::collection::vec((kind, 0u32..9, 0u64..4, payload), 0..60).prop_map(|all| {
        let mut bytes = Vec::new();
        for (kind, stream, generation, payload) in all {
            // What its kind has no room for can't be said.
            let _ = frame::encode(&mut bytes, kind, stream, generation.min(2), &payload);
        }
        bytes
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_guest_makes_the_host_panic_or_hang(bytes in frames(), noise in prop::collection::vec(any::<u8>(), 0..40)) {
        runtime().block_on(async {
            let (host, mut guest) = tokio::io::duplex(1 << 20);
            let link = Link::start(host, 2, Arc::new(Nowhere));
            let asked = [Request::Ping, Request::Survey, Request::Sync];
            let asking = async {
                for request in &asked {
                    let _ = link.request(request, PATIENCE).await;
                }
            };
            let lying = async {
                let _ = guest.write_all(&bytes).await;
                let _ = guest.write_all(&noise).await;
                let _ = guest.shutdown().await;
                let mut rest = Vec::new();
                let _ = guest.read_to_end(&mut rest).await;
            };
            tokio::time::timeout(PATIENCE, async { tokio::join!(asking, lying, link.ended()) }).await.expect("it ends");
        });
    }
}

#[test]
fn no_host_makes_the_program_inside_die_of_a_signal() {
    let mut random = proptest::test_runner::TestRunner::deterministic();
    let cases = (frames(), prop::collection::vec(any::<u8>(), 0..40));
    runtime().block_on(async {
        for case in 0..40 {
            let (bytes, noise) = cases.new_tree(&mut random).unwrap().current();
            let world = World::new();
            let (mut channel, machine, _) = agent(world.folder.path());
            let mut said = Vec::new();
            if case % 2 == 0 {
                // One that is a session's already.
                let configure = Request::Configure(configure()).encode();
                frame::encode(&mut said, Kind::Open, 1, 1, &configure).unwrap();
            }
            said.extend(&bytes);
            said.extend(&noise);
            let (mut answers, mut says) = channel.split();
            let talk = async {
                let _ = says.write_all(&said).await;
                let _ = says.shutdown().await;
                let mut rest = Vec::new();
                let _ = answers.read_to_end(&mut rest).await;
            };
            tokio::time::timeout(PATIENCE, talk).await.expect("it ends");
            let ended = machine.0.lock().await.wait().await.unwrap();
            assert!(ended.code().is_some(), "case {case}: {ended}");
        }
    });
}
