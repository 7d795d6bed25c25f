//! Partial archives that are kept: what they list, and their contents laid open.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

use super::members::{Kind, Member, Members};
use super::stream::Stream;
use super::{CONTENT, Error, LISTING, Limits};
use crate::files::Files;
use crate::hash::Hash;
use crate::names::Rule;

/// What a partial archive lists; the contents behind the list are not read.
///
/// # Errors
/// It is no partial archive, is damaged or cut off, or reading it failed.
pub fn listing(from: impl Read, limits: &Limits) -> Result<Files, Error> {
    let mut members = Members::new(Stream::open(from, limits)?, limits);
    match members.next()? {
        Some(Member { path, kind: Kind::File { .. } }) if path == LISTING => read(&mut members),
        _ => Err(unlisted("the archive does not begin with it".to_owned())),
    }
}

/// Reads the listing, which is the current member.
pub(super) fn read(members: &mut Members<'_>) -> Result<Files, Error> {
    serde_json::from_slice(&members.content()?).map_err(|error| unlisted(error.to_string()))
}

fn unlisted(reason: String) -> Error {
    Error::refused(LISTING.as_bytes(), Rule::Listing(reason))
}

/// Writes the contents of a partial archive into a folder, each to a file that is named by its hash. One that is there already stays.
///
/// # Errors
/// The archive is damaged or cut off; reading it or writing the files failed.
pub fn contents(from: impl Read, into: &Path, limits: &Limits) -> Result<(), Error> {
    let mut members = Members::new(Stream::open(from, limits)?, limits);
    while let Some(member) = members.next()? {
        let hash = member.path.strip_prefix(CONTENT).and_then(|hash| hash.parse::<Hash>().ok());
        let Some(hash) = hash else { continue };
        let path = into.join(hash.to_string());
        let at = |source| Error::File { doing: "writing", path: path.clone(), source };
        let mut file: File = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(at(error)),
        };
        if members.copy(&mut file, at)?.0 != hash {
            return Err(members.refused(Rule::OtherContent));
        }
    }
    Ok(())
}
