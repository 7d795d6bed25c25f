//! What an organisation demands of all its sessions.

use karta_types::egress::Rule;
use karta_types::org_policy::OrgPolicy;

use crate::control::audit::digest;
use crate::{Engine, Error, Principal, Result};

/// Rules of one list.
const MOST: usize = 500;

impl Engine {
    /// The organisation's policy.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn org_policy(&self, who: &Principal) -> Result<OrgPolicy> {
        Ok(self.store().org_policy_get(who.org).await?)
    }

    /// Sets the organisation's policy, all of it. It holds for sessions made from then on, and for what runs from its next process on.
    ///
    /// # Errors
    /// `invalid_request` for what is no rule.
    pub async fn set_org_policy(&self, who: &Principal, policy: OrgPolicy) -> Result<OrgPolicy> {
        check("/egress_allow", policy.egress_allow.as_deref().unwrap_or_default())?;
        check("/egress_deny", &policy.egress_deny)?;
        let before = self.store().org_policy_get(who.org).await?;
        let mut told = self.told(who, "policy.set", who.org);
        told.before = Some(digest(&before)?);
        told.after = Some(digest(&policy)?);
        self.store().org_policy_set(who.org, &policy, self.clock().now(), told).await?;
        Ok(policy)
    }
}

fn check(at: &str, rules: &[String]) -> Result<()> {
    if rules.len() > MOST {
        return Err(Error::invalid(at, format!("at most {MOST} rules")));
    }
    for (index, rule) in rules.iter().enumerate() {
        Rule::parse(rule).map_err(|why| Error::invalid(&format!("{at}/{index}"), why))?;
    }
    Ok(())
}
