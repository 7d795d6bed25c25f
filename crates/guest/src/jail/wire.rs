//! A plan as bytes: every number little-endian, every text and list with its length before it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::{Access, DESCRIPTORS, Ids, Item, LONGEST, Limit, Plan, Range};

/// Begins every plan, so that a launcher of another version refuses it.
const MARK: u32 = 0x6b70_0002;

/// Most elements of a list.
const MOST: usize = 1024;

impl Plan {
    /// The plan as bytes; none if it is too big or breaks a bound.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(4096);
        number(&mut out, MARK);
        flag(&mut out, self.privileged);
        text(&mut out, self.name.as_bytes());
        list(&mut out, &self.groups, |out, group| path(out, group));
        list(&mut out, &self.users, range);
        list(&mut out, &self.members, range);
        number(&mut out, self.user);
        number(&mut out, self.group);
        list(&mut out, &self.kept, |out, group| number(out, *group));
        long(&mut out, self.root);
        list(&mut out, &self.items, item);
        long(&mut out, self.capabilities);
        flag(&mut out, self.reaper);
        list(&mut out, self.program.as_slice(), |out, program| path(out, program));
        list(&mut out, &self.arguments, |out, one| text(out, one));
        list(&mut out, &self.environment, |out, one| text(out, one));
        path(&mut out, &self.folder);
        list(&mut out, &self.descriptors, |out, target| number(out, target.unwrap_or(u32::MAX)));
        list(&mut out, &self.limits, |out, limit| {
            number(out, limit.resource);
            long(out, limit.most);
        });
        flag(&mut out, self.access.is_some());
        list(&mut out, self.access.as_deref().unwrap_or_default(), |out, access| {
            path(out, &access.path);
            flag(out, access.writable);
        });
        text(&mut out, &self.filter);
        // What this side can't read back, the other could not either.
        (out.len() <= LONGEST && Self::decode(&out).as_ref() == Some(self)).then_some(out)
    }

    /// Reads a plan; none if it is not a whole one, and nothing more.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let rest = &mut rest;
        if bytes.len() > LONGEST || rest.number()? != MARK {
            return None;
        }
        let plan = Self {
            privileged: rest.flag()?,
            name: String::from_utf8(rest.text()?).ok()?,
            groups: rest.list(Reader::path)?,
            users: rest.list(Reader::range)?,
            members: rest.list(Reader::range)?,
            user: rest.number()?,
            group: rest.number()?,
            kept: rest.list(Reader::number)?,
            root: rest.long()?,
            items: rest.list(Reader::item)?,
            capabilities: rest.long()?,
            reaper: rest.flag()?,
            program: rest.list(Reader::path)?.pop(),
            arguments: rest.list(Reader::text)?,
            environment: rest.list(Reader::text)?,
            folder: rest.path()?,
            descriptors: rest.list(|rest| Some(Some(rest.number()?).filter(|number| *number != u32::MAX)))?,
            limits: rest.list(|rest| Some(Limit { resource: rest.number()?, most: rest.long()? }))?,
            access: {
                let there = rest.flag()?;
                let list = rest.list(|rest| Some(Access { path: rest.path()?, writable: rest.flag()? }))?;
                there.then_some(list)
            },
            filter: rest.text()?,
        };
        let strings = plan.arguments.iter().chain(&plan.environment);
        (rest.0.is_empty()
            && plan.descriptors.len() <= DESCRIPTORS
            && strings.into_iter().all(|one| !one.contains(&0)))
        .then_some(plan)
    }
}

fn number(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn long(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn flag(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

fn text(out: &mut Vec<u8>, value: &[u8]) {
    // A longer one is longer than a plan may be, which is found at the end.
    number(out, u32::try_from(value.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(value);
}

fn path(out: &mut Vec<u8>, value: &Path) {
    text(out, value.as_os_str().as_bytes());
}

fn list<T>(out: &mut Vec<u8>, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
    number(out, u32::try_from(values.len()).unwrap_or(u32::MAX));
    for value in values {
        each(out, value);
    }
}

fn range(out: &mut Vec<u8>, range: &Range) {
    number(out, range.inside);
    number(out, range.outside);
    number(out, range.count);
}

fn ids(out: &mut Vec<u8>, ids: Ids) {
    number(out, ids.user);
    number(out, ids.group);
}

fn item(out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::Folder { to, mode, owner } => {
            out.push(0);
            path(out, to);
            number(out, *mode);
            ids(out, *owner);
        }
        Item::Link { to, target } => {
            out.push(1);
            path(out, to);
            path(out, target);
        }
        Item::File { to, content } => {
            out.push(2);
            path(out, to);
            text(out, content);
        }
        Item::Bind { from, to, writable, devices, ids: map } => {
            out.push(3);
            path(out, from);
            path(out, to);
            flag(out, *writable);
            flag(out, *devices);
            flag(out, map.is_some());
            if let Some((from, to)) = map {
                ids(out, *from);
                ids(out, *to);
            }
        }
        Item::Memory { to, size, mode } => {
            out.push(4);
            path(out, to);
            long(out, *size);
            number(out, *mode);
        }
        Item::Processes { to } => {
            out.push(5);
            path(out, to);
        }
        Item::Terminals { to } => {
            out.push(6);
            path(out, to);
        }
        Item::Disk { descriptor, to, owner } => {
            out.push(7);
            number(out, *descriptor);
            path(out, to);
            ids(out, *owner);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.bytes::<1>()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text.to_vec())
    }

    fn path(&mut self) -> Option<PathBuf> {
        let text = self.text()?;
        (!text.contains(&0)).then(|| PathBuf::from(OsString::from_vec(text)))
    }

    fn list<T>(&mut self, each: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let length = usize::try_from(self.number()?).ok().filter(|length| *length <= MOST)?;
        (0..length).map(|_| each(self)).collect()
    }

    fn range(&mut self) -> Option<Range> {
        Some(Range { inside: self.number()?, outside: self.number()?, count: self.number()? })
    }

    fn ids(&mut self) -> Option<Ids> {
        Some(Ids { user: self.number()?, group: self.number()? })
    }

    fn item(&mut self) -> Option<Item> {
        Some(match self.bytes::<1>()? {
            [0] => Item::Folder { to: self.path()?, mode: self.number()?, owner: self.ids()? },
            [1] => Item::Link { to: self.path()?, target: self.path()? },
            [2] => Item::File { to: self.path()?, content: self.text()? },
            [3] => Item::Bind {
                from: self.path()?,
                to: self.path()?,
                writable: self.flag()?,
                devices: self.flag()?,
                ids: if self.flag()? { Some((self.ids()?, self.ids()?)) } else { None },
            },
            [4] => Item::Memory { to: self.path()?, size: self.long()?, mode: self.number()? },
            [5] => Item::Processes { to: self.path()? },
            [6] => Item::Terminals { to: self.path()? },
            [7] => Item::Disk { descriptor: self.number()?, to: self.path()?, owner: self.ids()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan() -> Plan {
        let ids = Ids { user: 7, group: 8 };
        Plan {
            privileged: true,
            name: "box".into(),
            groups: vec!["/sys/fs/cgroup/x".into()],
            users: vec![Range { inside: 0, outside: 70_000, count: 65_536 }],
            kept: vec![104],
            items: vec![
                Item::Folder { to: "/a".into(), mode: 0o755, owner: ids },
                Item::Link { to: "/b".into(), target: "a".into() },
                Item::File { to: "/c".into(), content: b"c\n".to_vec() },
                Item::Bind {
                    from: "/usr".into(),
                    to: "/usr".into(),
                    writable: false,
                    devices: true,
                    ids: Some((ids, ids)),
                },
                Item::Memory { to: "/tmp".into(), size: 1 << 40, mode: 0o1777 },
                Item::Processes { to: "/proc".into() },
                Item::Terminals { to: "/dev/pts".into() },
                Item::Disk { descriptor: 1, to: "/state".into(), owner: ids },
            ],
            program: Some("/bin/sh".into()),
            arguments: vec![b"sh".to_vec()],
            descriptors: vec![Some(3), None],
            limits: vec![Limit { resource: 7, most: 1024 }],
            access: Some(vec![Access { path: "/".into(), writable: false }]),
            filter: vec![1, 2, 3, 4, 5, 6, 7, 8],
            ..Plan::default()
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let bytes = plan().encode().unwrap();
        assert_eq!(Plan::decode(&bytes).unwrap(), plan());
    }

    #[test]
    fn no_part_of_a_plan_and_nothing_after_it_is_read() {
        let mut bytes = plan().encode().unwrap();
        for length in 0..bytes.len() {
            assert_eq!(Plan::decode(&bytes[..length]), None, "{length}");
        }
        bytes.push(0);
        assert_eq!(Plan::decode(&bytes), None);
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let zero = Plan { arguments: vec![b"a\0b".to_vec()], ..plan() };
        let big = Plan { filter: vec![0; LONGEST], ..plan() };
        let many = Plan { descriptors: vec![None; DESCRIPTORS + 1], ..plan() };
        for bad in [zero, big, many] {
            assert_eq!(bad.encode(), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 0usize..400, value: u8) {
            let _ = Plan::decode(&bytes);
            let mut bytes = plan().encode().unwrap();
            let length = bytes.len();
            bytes[at % length] = value;
            let _ = Plan::decode(&bytes);
        }
    }
}
