//! Whether a harness would run here, checked one thing at a time.

use karta_types::{Rng, rng};
use serde::Serialize;

use super::catalogue::{Harnesses, read};
use super::install::{Error, try_out};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found; if it is not well, what to do.
    pub detail: String,
}

impl Harnesses {
    /// Looks whether the harness `id` is installed and starts.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is no such harness.
    pub async fn doctor(&self, id: &str) -> Result<Vec<Check>, Error> {
        let harness = self.find(id)?;
        let Some(package) = harness.package() else {
            return Ok(vec![Check {
                name: "program",
                ok: true,
                detail: "built in, needs no installation".to_owned(),
            }]);
        };
        let mut checks = vec![check("npm", self.npm.version().await)];
        let here = package.here();
        checks.push(Check {
            name: "package",
            ok: here.is_some(),
            detail: here.map_or_else(
                || Error::NotHere { id: harness.id() }.to_string(),
                |here| format!("{}@{}", here.name, package.default_version),
            ),
        });
        let found = self.program(harness, None);
        checks
            .push(check("installed", found.clone().map(|installed| installed.program.display().to_string())));
        if let (Ok(installed), Some(here)) = (found, here) {
            let record = read(&self.home(id).join(&installed.version));
            let same = record.is_some_and(|record| record.integrity == here.integrity);
            let detail = if same {
                here.integrity.to_owned()
            } else {
                format!(
                    "another package than the pinned one; delete `{}` and install again",
                    self.home(id).display()
                )
            };
            checks.push(Check { name: "integrity", ok: same, detail });
            let starts = self.starts(&installed.program, &installed.version).await;
            checks.push(check(
                "starts",
                starts.map(|()| format!("answers with version {}", installed.version)),
            ));
        }
        Ok(checks)
    }

    /// Starts the program in a home that is thrown away.
    async fn starts(&self, program: &std::path::Path, version: &str) -> Result<(), Error> {
        let trial = self.root.join(format!(".trial-{:032x}", rng::System.next_u128()));
        tokio::fs::create_dir_all(&trial).await.map_err(|why| Error::file("making", &trial, why))?;
        let result = try_out(program, version, &trial).await;
        // Whatever the program left is only litter; the answer is what counts.
        let _ = tokio::fs::remove_dir_all(&trial).await;
        result
    }
}

fn check<E: std::fmt::Display>(name: &'static str, result: Result<String, E>) -> Check {
    match result {
        Ok(detail) => Check { name, ok: true, detail },
        Err(error) => Check { name, ok: false, detail: error.to_string() },
    }
}
