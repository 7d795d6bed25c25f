//! Service tokens: one a line in a file. A control plane takes each, a data plane shows the first. To rotate: add the new one to the
//! control plane's file, put it first in the data planes', take the old one out.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use karta_types::{Rng, Secret};
use tokio::time::Instant;

use crate::control::keys::generate;
use crate::{Error, Result};

/// How long the file's content is believed.
const FRESH: Duration = Duration::from_millis(500);
/// The largest file that is read, in bytes.
const MOST: usize = 64 << 10;

/// The tokens of a file.
#[derive(Debug)]
pub(crate) struct ServiceTokens {
    path: PathBuf,
    known: Mutex<Option<(Instant, Vec<Secret>)>>,
}

impl ServiceTokens {
    /// Of this file. With `rng`, one that is not there is made with a token in it.
    ///
    /// # Errors
    /// The file can't be read or made.
    pub(crate) fn open(path: PathBuf, rng: Option<&dyn Rng>) -> Result<Self> {
        if let Some(rng) = rng
            && !path.exists()
        {
            create(&path, &format!("{}\n", generate("kt_service_", rng)))?;
        }
        Ok(Self { path, known: Mutex::new(None) })
    }

    async fn read(&self) -> Result<Vec<Secret>> {
        if let Some((at, tokens)) = &*self.known.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < FRESH
        {
            return Ok(tokens.clone());
        }
        let doing = "reading the file of service tokens";
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|error| Error::internal(doing, format!("`{}`: {error}", self.path.display())))?;
        if text.len() > MOST {
            return Err(Error::internal(doing, "it is too large"));
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let tokens: Vec<_> = lines.map(|line| Secret::new(line.to_owned())).collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), tokens.clone()));
        Ok(tokens)
    }

    /// The one to show.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn first(&self) -> Result<Secret> {
        let tokens = self.read().await?;
        tokens.into_iter().next().ok_or_else(|| {
            Error::internal(
                "reading the file of service tokens",
                format!("`{}` has none", self.path.display()),
            )
        })
    }

    /// Whether somebody shows one of them.
    pub(crate) async fn knows(&self, shown: &str) -> bool {
        let Ok(tokens) = self.read().await else { return false };
        let shown = digest(&SHA256, shown.as_bytes());
        // Every one is looked at: how long it takes tells nothing.
        tokens.iter().fold(false, |known, token| {
            let token = digest(&SHA256, token.expose().as_bytes());
            known | verify_slices_are_equal(token.as_ref(), shown.as_ref()).is_ok()
        })
    }
}

fn create(path: &Path, content: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|error| Error::internal("making the file of service tokens", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::rng::Seeded;

    #[tokio::test]
    async fn several_are_good_and_the_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let tokens = ServiceTokens::open(path.clone(), Some(&Seeded::new(1))).unwrap();
        let first = tokens.first().await.unwrap();
        assert!(
            tokens.knows(first.expose()).await
                && !tokens.knows("").await
                && !tokens.knows("kt_service_").await
        );
        std::fs::write(&path, format!("# new\nkt_service_new\n\n{}\n", first.expose())).unwrap();
        tokio::time::sleep(FRESH).await;
        assert!(tokens.knows(first.expose()).await && tokens.knows("kt_service_new").await);
        assert_eq!(tokens.first().await.unwrap().expose(), "kt_service_new");
        std::fs::write(&path, "\n").unwrap();
        tokio::time::sleep(FRESH).await;
        assert!(!tokens.knows("kt_service_new").await && tokens.first().await.is_err());
    }
}
