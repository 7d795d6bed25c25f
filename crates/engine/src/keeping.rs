//! What the platform does by itself, again and again: each plane its own part.

use std::future::Future;
use std::time::Duration;

use crate::control::budgets::RENEWAL;
use crate::data::health::TRYING;
use crate::settings::Plane;
use crate::{Engine, Error, Result};

/// How often the house is kept: old journal, old replies, the ballast.
const KEEPING: Duration = Duration::from_mins(1);
/// How often what a crash has left of sandboxes is looked for.
const REAPING: Duration = Duration::from_mins(5);
/// How often what another node changed is looked for.
const LOOKING: Duration = Duration::from_millis(500);
/// How often what happened is told to webhook endpoints, and what was handed over is taken.
const DELIVERING: Duration = Duration::from_millis(500);
/// How often the ends of the audit log's chains are signed.
const SEALING: Duration = Duration::from_hours(1);

impl Engine {
    /// Begins. The first look at keys and holds is over when this returns.
    pub(crate) async fn keep(&self) {
        let plane = self.settings().plane;
        if plane == Plane::Data {
            self.again(RENEWAL, "renewing holds", |engine| async move { engine.renew_elsewhere().await });
            self.again(LOOKING, "asking for allowed origins", |engine| async move {
                engine.origins_elsewhere().await
            });
        } else {
            self.keep_budgets().await;
            self.keep_keys().await;
            self.again(RENEWAL, "keeping holds", |engine| async move {
                engine.keep_budgets().await;
                Ok(())
            });
            self.again(LOOKING, "looking at keys", |engine| async move {
                engine.keep_keys().await;
                Ok(())
            });
            self.again(DELIVERING, "telling what happened", |engine| async move { engine.tell().await });
            self.again(SEALING, "keeping records", |engine| async move { engine.keep_records().await });
        }
        if plane != Plane::Data {
            self.again(KEEPING, "expiring credit", |engine| async move { engine.expire_credit().await });
        }
        if plane != Plane::Control {
            self.again(REAPING, "removing what is left of sandboxes", |engine| async move {
                for driver in engine.drivers() {
                    // Whatever a session or a build has stays: what has no server any more is what goes.
                    driver.reap(&|_| true).await?;
                }
                Ok(())
            });
            self.again(TRYING, "trying this host", |engine| async move { engine.try_host().await });
            self.again(KEEPING, "ending previews", |engine| async move { engine.end_previews().await });
            self.again(
                SEALING,
                "keeping what sessions made",
                |engine| async move { engine.keep_state().await },
            );
            self.again(SEALING, "keeping releases", |engine| async move { engine.keep_all_releases().await });
        }
        self.again(KEEPING, "keeping the house", |engine| async move {
            engine.keep_house().await;
            Ok(())
        });
    }

    /// Does something every so often. What fails is logged and done again.
    fn again<F, T>(&self, every: Duration, doing: &'static str, task: T)
    where
        T: Fn(Self) -> F + Send + 'static,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let engine = self.clone();
        self.tasks().every(every, move || {
            let done = task(engine.clone());
            async move {
                if let Err(error) = done.await {
                    tracing::error!(error = error.chain(), "{doing}");
                }
            }
        });
    }

    async fn renew_elsewhere(&self) -> Result<()> {
        match self.remote() {
            Some(remote) => remote.renew().await,
            None => Ok(()),
        }
    }

    async fn origins_elsewhere(&self) -> Result<()> {
        match self.remote() {
            Some(remote) => remote.refresh().await,
            None => Ok(()),
        }
    }

    /// Takes what data planes handed over, and delivers webhooks. As long as much waits, the next go at once.
    async fn tell(&self) -> Result<()> {
        self.store().take_over().await?;
        while self.deliver().await? > 0 && !self.tasks().is_stopping() {}
        Ok(())
    }

    /// Signs the audit log, forgets old deliveries, wraps secrets anew when it is time.
    async fn keep_records(&self) -> Result<()> {
        self.forget_happenings().await?;
        self.audit_seal().await?;
        self.report_usage().await?;
        if self.control().encryption().is_due() {
            let secrets = self.rotate_key_encryption().await?;
            tracing::info!(secrets, "a new key-encryption key wraps the organisations' secrets");
        }
        Ok(())
    }

    /// Holds of calls that run go on; those that nobody has any more are settled.
    async fn keep_budgets(&self) {
        if let Err(error) = self.control().budgets().keep(self.clock().now()).await {
            tracing::error!(error = error.chain(), "keeping holds");
        }
    }

    /// Erases what is past its time, and puts the ballast back. Runs by itself every minute.
    pub async fn keep_house(&self) {
        let now = self.clock().now();
        let before = crate::data::sessions::expired_before(now, self.settings().journal_retention());
        let kept = async {
            while self.store().journal_expire(before, 1000).await? >= 1000 {}
            self.store().idem_expire(now).await?;
            if self.settings().plane != Plane::Data {
                self.store().sign_ins_expire(now).await?;
                self.store().session_tokens_expire(now).await?;
                self.store().tool_secrets_sweep().await?;
            }
            Ok::<_, karta_store::Error>(())
        };
        if let Err(error) = kept.await {
            tracing::error!(error = Error::from(error).chain(), "erasing what is past its time");
        }
        let data = self.data_dir().to_owned();
        let room = tokio::task::spawn_blocking(move || crate::engine::set_ballast(&data)).await;
        if matches!(room, Ok(Ok(()))) {
            self.space_is_back();
        }
    }
}
