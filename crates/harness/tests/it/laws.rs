//! The laws of every codec, over recorded sessions of it.
//!
//! Use: `laws::hold(make, transcript)` in one test per transcript, where `make` gives a new codec and `transcript` is the text of
//! a recorded session; then a snapshot of `laws::shown(make, transcript)`.

use std::collections::HashSet;
use std::fmt::Write;

use karta_harness::transcript::{Do, Played, Step, parse, play};
use karta_harness::{Codec, Out, Said};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Makes a new codec, as for the process that was recorded.
pub(crate) type Make = fn() -> Box<dyn Codec>;

/// Holds a codec to every law, over one recorded session.
pub(crate) fn hold(make: Make, transcript: &str) {
    let steps = parse(transcript).unwrap();
    let whole = played(make, &steps);
    let fault = orderly(&whole.said).err();
    assert_eq!(fault, None, "{:#?}", whole.said);
    writes_what_was_recorded(&whole, &steps);
    splitting_changes_nothing(make, &steps, &whole);
    cut_short_it_still_ends(make, &steps);
    damage_does_no_harm(make, &steps);
}

/// What a codec says in a recorded session, one thing a line, for snapshots.
pub(crate) fn shown(make: Make, transcript: &str) -> String {
    let played = played(make, &parse(transcript).unwrap());
    let mut text = String::new();
    for said in &played.said {
        writeln!(text, "{said:?}").unwrap();
    }
    if let Some(native) = played.native_session {
        writeln!(text, "native session: {native}").unwrap();
    }
    text
}

fn played(make: Make, steps: &[Step]) -> Played {
    play(make().as_mut(), steps, |bytes, feed| feed(bytes))
}

/// The laws that hold for whatever is said: one `Ready`, ends only of turns, one use and one result per call, no question twice.
fn orderly(said: &[Said]) -> Result<(), String> {
    let (mut ready, mut uses, mut results) = (false, HashSet::new(), HashSet::new());
    let (mut asked, mut open) = (HashSet::new(), HashSet::new());
    for said in said {
        let fresh = match said {
            Said::Ready => !std::mem::replace(&mut ready, true),
            Said::ToolUse { call, .. } => uses.insert(call),
            Said::ToolResult { call, .. } => results.insert(call),
            Said::Asked { request, .. } => asked.insert(request) && open.insert(request),
            Said::Withdrawn { request } => open.remove(request),
            _ => true,
        };
        if !fresh {
            return Err(format!("said more than once, or out of order: {said:?}"));
        }
    }
    Ok(())
}

fn ends(said: &[Said]) -> usize {
    said.iter().filter(|said| matches!(said, Said::Ended(_))).count()
}

fn messages(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Do(Do::Message { .. }))).count()
}

/// A codec says again, in a replay, the very lines it wrote when the session was recorded (as JSON: the order of keys is free).
fn writes_what_was_recorded(whole: &Played, steps: &[Step]) {
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let recorded: Vec<_> = steps
        .iter()
        .filter_map(|step| match step {
            Step::In { line } => Some(json(line)),
            _ => None,
        })
        .collect();
    let wrote: Vec<_> = std::str::from_utf8(&whole.wrote).unwrap().lines().map(json).collect();
    assert_eq!(wrote, recorded, "what the codec writes is not what was recorded");
}

fn splitting_changes_nothing(make: Make, steps: &[Step], whole: &Played) {
    let bytewise = play(make().as_mut(), steps, |bytes, feed| bytes.chunks(1).for_each(feed));
    assert_eq!(&bytewise, whole, "byte by byte");
    run(24, proptest::collection::vec(1usize..4000, 1..40), |sizes| {
        let mut sizes = sizes.into_iter().cycle();
        let pieces = play(make().as_mut(), steps, |mut bytes, feed| {
            while !bytes.is_empty() {
                let (piece, rest) = bytes.split_at(sizes.next().unwrap_or(1).min(bytes.len()));
                feed(piece);
                bytes = rest;
            }
        });
        prop_assert_eq!(&pieces, whole);
        Ok(())
    });
}

/// However early the process dies, every turn that was begun has ended once.
fn cut_short_it_still_ends(make: Make, steps: &[Step]) {
    for at in 0..=steps.len() {
        let mut codec = make();
        let mut out = Out::default();
        let mut played = play(codec.as_mut(), &steps[..at], |bytes, feed| feed(bytes));
        let before = ends(&played.said);
        codec.exited(None, "killed", &mut out);
        played.take(&mut out);
        let after = ends(&played.said);
        assert!(after - before <= 1, "cut at step {at}: {:#?}", played.said);
        assert!(after <= messages(&steps[..at]), "cut at step {at}: {:#?}", played.said);
        if let Some(last) = steps[..at].iter().rposition(|step| matches!(step, Step::Do(Do::Message { .. })))
        {
            let earlier = ends(&self::played(make, &steps[..last]).said);
            assert!(after > earlier, "cut at step {at}, the last turn has no end: {:#?}", played.said);
        }
        codec.exited(None, "killed", &mut out);
        played.take(&mut out);
        assert_eq!(ends(&played.said), after, "cut at step {at}, an end of nothing");
        assert_eq!(orderly(&played.said), Ok(()), "cut at step {at}");
    }
}

/// One kind of damage to the lines of the process.
#[derive(Debug, Clone)]
enum Damage {
    /// The line never came.
    Lost(usize),
    /// The line came twice.
    Twice(usize),
    /// The line came at another time.
    Moved(usize, usize),
    /// A byte was changed.
    Byte(usize, usize, u8),
    /// The line broke off.
    Torn(usize, usize),
    /// A word of the line became another JSON value.
    Retyped(usize, usize, &'static str),
    /// Something else came before it.
    Noise(usize, String),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0usize..10_000;
    let value = prop_oneof![
        Just("null"),
        Just("-1"),
        Just("1e300"),
        Just("[]"),
        Just("{}"),
        Just("\"\""),
        Just("true")
    ];
    prop_oneof![
        at.clone().prop_map(Damage::Lost),
        at.clone().prop_map(Damage::Twice),
        (at.clone(), at.clone()).prop_map(|(from, to)| Damage::Moved(from, to)),
        (at.clone(), at.clone(), any::<u8>()).prop_map(|(line, byte, with)| Damage::Byte(line, byte, with)),
        (at.clone(), at.clone()).prop_map(|(line, byte)| Damage::Torn(line, byte)),
        (at.clone(), at.clone(), value).prop_map(|(line, word, with)| Damage::Retyped(line, word, with)),
        (at, "\\PC{0,40}").prop_map(|(line, noise)| Damage::Noise(line, noise)),
    ]
}

fn damage_does_no_harm(make: Make, steps: &[Step]) {
    if !steps.iter().any(|step| matches!(step, Step::Out { .. })) {
        return;
    }
    run(96, proptest::collection::vec(damage(), 1..5), |damages| {
        let mut steps: Vec<Step> = steps.to_vec();
        for damage in damages {
            apply(&mut steps, damage);
        }
        let mut codec = make();
        let mut out = Out::default();
        let mut played = play(codec.as_mut(), &steps, |bytes, feed| feed(bytes));
        codec.exited(Some(1), "", &mut out);
        played.take(&mut out);
        let fault = orderly(&played.said).err();
        prop_assert_eq!(fault, None);
        let begun = messages(&steps);
        prop_assert!(ends(&played.said) <= begun && (begun == 0 || ends(&played.said) > 0));
        Ok(())
    });
}

fn apply(steps: &mut Vec<Step>, damage: Damage) {
    let outs: Vec<usize> = (0..steps.len()).filter(|&at| matches!(steps[at], Step::Out { .. })).collect();
    let Some(count) = std::num::NonZeroUsize::new(outs.len()) else { return };
    let pick = |at: usize| outs[at % count];
    let change = |steps: &mut Vec<Step>, at: usize, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        if let Step::Out { line } = &mut steps[at] {
            *line = String::from_utf8_lossy(&change(std::mem::take(line).into_bytes())).into_owned();
        }
    };
    match damage {
        Damage::Lost(at) => drop(steps.remove(pick(at))),
        Damage::Twice(at) => steps.insert(pick(at), steps[pick(at)].clone()),
        Damage::Moved(from, to) => {
            let to = pick(to);
            let step = steps.remove(pick(from));
            steps.insert(to.min(steps.len()), step);
        }
        Damage::Byte(at, byte, with) => change(steps, pick(at), &|mut line| {
            let length = line.len().max(1);
            if let Some(place) = line.get_mut(byte % length) {
                *place = with;
            }
            line
        }),
        Damage::Torn(at, byte) => change(steps, pick(at), &|mut line| {
            line.truncate(byte % (line.len() + 1));
            line
        }),
        Damage::Retyped(at, word, with) => change(steps, pick(at), &|line| retyped(&line, word, with)),
        Damage::Noise(at, noise) => steps.insert(pick(at), Step::Out { line: noise }),
    }
}

/// Puts `with` in the place of the `word`th value of a JSON line, counted through the whole tree.
fn retyped(line: &[u8], word: usize, with: &str) -> Vec<u8> {
    fn count(value: &serde_json::Value) -> usize {
        1 + match value {
            serde_json::Value::Array(items) => items.iter().map(count).sum(),
            serde_json::Value::Object(fields) => fields.values().map(count).sum(),
            _ => 0,
        }
    }
    fn put(value: &mut serde_json::Value, left: &mut usize, with: &serde_json::Value) -> bool {
        if *left == 0 {
            *value = with.clone();
            return true;
        }
        *left -= 1;
        match value {
            serde_json::Value::Array(items) => items.iter_mut().any(|item| put(item, left, with)),
            serde_json::Value::Object(fields) => fields.values_mut().any(|field| put(field, left, with)),
            _ => false,
        }
    }
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(line) else { return line.to_vec() };
    let mut left = word % count(&value);
    put(&mut value, &mut left, &serde_json::from_str(with).unwrap());
    value.to_string().into_bytes()
}

/// Runs a property with a fixed seed: a law that fails, fails for everybody.
fn run<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    if let Err(error) = runner.run(&strategy, test) {
        panic!("{error}");
    }
}
