//! The processes below one, as `/proc` shows them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::sys;

/// What a process does at the moment. The later, the more it can still do; a process of several threads is what the most awake one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Dead but for its number.
    Dead,
    /// Stopped by a signal.
    Stopped,
    /// In a wait of the kernel that a stop does not end, as whoever waits until its `vfork` child runs a program: it sees the
    /// signal before it comes back from there, so once it was told to stop it does nothing more of its own.
    Waiting,
    /// It runs, or would at any moment.
    Running,
}

impl State {
    /// The letter of `/proc/…/stat` (man proc(5)).
    fn of(letter: u8) -> Self {
        match letter {
            b'Z' | b'X' => Self::Dead,
            b'T' | b't' => Self::Stopped,
            b'D' => Self::Waiting,
            _ => Self::Running,
        }
    }
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: State,
}

impl Seen {
    /// Whether it is dead but for its number.
    pub(crate) fn dead(self) -> bool {
        self.state == State::Dead
    }

    /// Sends it a signal; nothing happens if it is gone.
    pub(crate) fn signal(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Every process there is, but for the kernel's own.
pub(crate) fn processes() -> Vec<Seen> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

fn process(pid: i32) -> Option<Seen> {
    let folder = format!("/proc/{pid}");
    let line = Line::parse(&fs::read(format!("{folder}/stat")).ok()?)?;
    if line.kernel {
        return None;
    }
    let mut state = line.state;
    if line.threads > 1 {
        // The line tells of the first thread, which may be dead or stand still while others run.
        for thread in fs::read_dir(format!("{folder}/task")).ok()?.flatten() {
            let line = fs::read(thread.path().join("stat")).ok();
            state =
                state.max(line.and_then(|line| Line::parse(&line)).map_or(State::Dead, |line| line.state));
        }
    }
    Some(Seen { pid, parent: line.parent, state })
}

/// The flag of the kernel's own threads (`PF_KTHREAD`).
const KERNEL: u32 = 0x0020_0000;

/// A line of `/proc/…/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    state: State,
    parent: i32,
    /// Whether it is a thread of the kernel's.
    kernel: bool,
    threads: u32,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses included; what counts comes after the last one.
        let after = line.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&line[after..]).ok()?.split_ascii_whitespace();
        let state = State::of(*fields.next()?.as_bytes().first()?);
        let parent = fields.next()?.parse().ok()?;
        // The ninth field; that was the fourth.
        let flags: u32 = fields.nth(4)?.parse().ok()?;
        // The twentieth.
        let threads = fields.nth(10)?.parse().ok()?;
        Some(Self { state, parent, kernel: flags & KERNEL != 0, threads })
    }
}

/// Those that descend from `root`, without it and without the ones below `but`.
pub(crate) fn below(all: &[Seen], root: i32, but: &HashSet<i32>) -> Vec<Seen> {
    let mut children: HashMap<i32, Vec<Seen>> = HashMap::new();
    for one in all {
        children.entry(one.parent).or_default().push(*one);
    }
    let mut found = Vec::new();
    let mut met = HashSet::from([root]);
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        for one in children.remove(&pid).unwrap_or_default() {
            if !but.contains(&one.pid) && met.insert(one.pid) {
                found.push(one);
                next.push(one.pid);
            }
        }
    }
    found
}

/// When something is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until(Instant);

impl Until {
    #[expect(clippy::disallowed_methods, reason = "the agent has no other clock, and only gives up by it")]
    fn now() -> Instant {
        Instant::now()
    }

    /// After so long from now.
    pub(crate) fn within(time: Duration) -> Self {
        Self(Self::now() + time)
    }

    /// The earlier of the two.
    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Whether it is time.
    pub(crate) fn over(self) -> bool {
        Self::now() >= self.0
    }
}

/// Stops everything that `find` gives until it finds nothing new that runs; so nobody is missed that is born meanwhile. Answers
/// who was stopped by it, and whether nothing was found any more: who makes another and ends faster than it is looked for gets away.
/// It gives up at `until`.
pub(crate) fn stop(until: Until, find: &dyn Fn() -> Vec<Seen>) -> (Vec<Seen>, bool) {
    /// How often it looks again.
    const ROUNDS: u32 = 500;
    /// How often at once; after that it waits a moment, for a busy host may not have given the stopped a turn to stop in.
    const AT_ONCE: u32 = 8;
    let mut stopped: Vec<Seen> = Vec::new();
    for round in 0..ROUNDS {
        let told = |one: &Seen| stopped.iter().any(|known| known.pid == one.pid);
        let running: Vec<Seen> = find()
            .into_iter()
            .filter(|one| one.state == State::Running || one.state == State::Waiting && !told(one))
            .collect();
        if running.is_empty() {
            return (stopped, true);
        }
        for one in running {
            one.signal(Signal::STOP);
            if !stopped.iter().any(|known| known.pid == one.pid) {
                stopped.push(one);
            }
        }
        if until.over() {
            break;
        }
        if round < AT_ONCE {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    (stopped, false)
}

/// As [`stop`], and nobody gets away: all of the sandbox is stopped at one moment, in which nobody can be born unstopped, and then
/// whoever `find` does not give goes on. Only for the first process ([`sys::stop_everyone`]).
pub(crate) fn stop_at_once(until: Until, find: &dyn Fn() -> Vec<Seen>) -> (Vec<Seen>, bool) {
    /// How often it tries. The kernel itself wakes the stopped whose group loses its last relative: these are stopped again.
    const TRIES: u32 = 100;
    let pids = |all: Vec<Seen>| all.into_iter().map(|one| one.pid).collect::<HashSet<i32>>();
    let stood = pids(processes().into_iter().filter(|one| one.state == State::Stopped).collect());
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let everyone = || processes().into_iter().filter(|one| one.pid != own).collect::<Vec<Seen>>();
    let mut settled = false;
    for _ in 0..TRIES {
        if !sys::stop_everyone() {
            return stop(until, find);
        }
        // They were all told, and still take their time. Nobody may have come or gone between two looks.
        let before = stop(until, &everyone).1.then(|| pids(everyone()));
        let now = everyone();
        settled = now.iter().all(|one| one.state < State::Running) && before == Some(pids(now));
        if settled || until.over() {
            break;
        }
    }
    let mut meant = find();
    let stay = pids(meant.clone());
    for one in everyone().into_iter().filter(|one| !stay.contains(&one.pid) && !stood.contains(&one.pid)) {
        one.signal(Signal::CONT);
    }
    meant.retain(|one| !one.dead() && !stood.contains(&one.pid));
    (meant, settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_misleads_nobody() {
        let line = b"7 (a) S 1 (b) R 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 2 21";
        let expected = Line { state: State::Running, parent: 3, kernel: false, threads: 2 };
        assert_eq!(Line::parse(line), Some(expected));
        assert_eq!(Line::parse(b"7 (a"), None);
        assert_eq!(Line::parse(b"7 (a) R 3"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(process(own).unwrap().state, State::Running);
    }

    fn patience() -> Until {
        Until::within(Duration::from_mins(1))
    }

    /// Starts a program whose processes are found by `stop`, and ended with the test.
    struct Program(std::process::Child);

    impl Program {
        /// A script of Python, which has said a word once it is where the test wants it.
        fn python(script: &str) -> Self {
            use std::io::BufRead;
            let mut child = std::process::Command::new("python3")
                .args(["-c", script])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = String::new();
            std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
            assert_eq!(said, "ready\n");
            Self(child)
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).unwrap()
        }

        fn tree(&self) -> Vec<Seen> {
            let all = processes();
            let mut found = below(&all, self.pid(), &HashSet::new());
            found.extend(all.into_iter().filter(|one| one.pid == self.pid()));
            found
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            for one in self.tree() {
                one.signal(Signal::KILL);
            }
            let _ = self.0.wait();
        }
    }

    #[test]
    fn whoever_waits_for_its_vfork_child_is_stopped_with_it() {
        // The child of posix_spawn opens a pipe that nobody writes to before it runs its program, so its parent waits for it.
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let script = format!(
            "import os\nos.mkfifo({pipe:?})\nprint('ready', flush=True)\n\
             os.posix_spawn('/bin/true', ['true'], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, {pipe:?}, os.O_RDONLY, 0)])"
        );
        let program = Program::python(&script);
        while !(program.tree().len() == 2 && program.tree().iter().any(|one| one.state == State::Waiting)) {
            std::thread::yield_now();
        }
        let (stopped, all) = stop(patience(), &|| program.tree());
        assert!(all, "{:?}", program.tree());
        assert_eq!(stopped.len(), 2);
    }

    #[test]
    fn a_process_whose_first_thread_ended_is_alive_and_can_be_stopped() {
        let script = "import ctypes, threading, time\n\
             def go():\n  print('ready', flush=True)\n  while True: time.sleep(0.01)\n\
             threading.Thread(target=go).start()\nctypes.CDLL(None).pthread_exit(None)";
        let program = Program::python(script);
        while fs::read(format!("/proc/{}/stat", program.pid()))
            .unwrap()
            .windows(4)
            .all(|part| part != b") Z ")
        {
            std::thread::yield_now();
        }
        assert_eq!(program.tree().iter().map(|one| one.dead()).collect::<Vec<_>>(), [false]);
        let (stopped, all) = stop(patience(), &|| program.tree());
        assert!(all);
        assert_eq!(stopped.len(), 1);
        assert_eq!(program.tree()[0].state, State::Stopped);
    }

    #[test]
    fn descendants_are_found_and_exceptions_left_out() {
        let one = |pid, parent| Seen { pid, parent, state: State::Running };
        let all = [one(10, 1), one(11, 10), one(12, 11), one(13, 1), one(14, 13)];
        let pids = |found: Vec<Seen>| {
            let mut pids: Vec<i32> = found.iter().map(|one| one.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(pids(below(&all, 10, &HashSet::new())), [11, 12]);
        assert_eq!(pids(below(&all, 1, &HashSet::from([13]))), [10, 11, 12]);
    }
}
