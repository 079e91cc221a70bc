//! Where the time of a step goes: a clock that at any moment runs on exactly one account.
//!
//! An account is an operation and a pass. A [`Span`] moves the clock to its account and, when it is dropped, back to
//! the one before, so a span inside another takes its time away from it and the accounts add up to the time that
//! passed. What no span claims is [`IDLE`]. A tape that is given a profile ([`crate::tape::Tape::profiled`]) opens the
//! spans of the operations itself, in both directions.
//!
//! ```
//! use evenkeel::profile::{IDLE, Pass, Profile};
//! let profile = Profile::start();
//! {
//!     let _span = profile.span("adamw", Pass::Optimizer);
//! }
//! let times = profile.take();
//! assert!(times.contains_key(&("adamw", Pass::Optimizer)) && times.contains_key(&IDLE));
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a step is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// From ids to loss.
    Forward,
    /// The forward pass of what was forgotten, run again during the backward pass.
    Recompute,
    /// From loss to gradients.
    Backward,
    /// From gradients to parameters.
    Optimizer,
    /// Anything else.
    Other,
}

impl Pass {
    /// All of them, in the order in which a step runs them.
    pub const ALL: [Pass; 5] = [Pass::Forward, Pass::Recompute, Pass::Backward, Pass::Optimizer, Pass::Other];

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Recompute => "recompute",
            Pass::Backward => "backward",
            Pass::Optimizer => "optimizer",
            Pass::Other => "other",
        }
    }
}

/// An operation in a pass.
pub type Account = (&'static str, Pass);

/// The account of time that no span claims.
pub const IDLE: Account = ("other", Pass::Other);

struct Clock {
    account: Account,
    since: Instant,
    times: BTreeMap<Account, Duration>,
}

impl Clock {
    /// Books the time since the last change and moves to `account`; gives the one before.
    fn switch(&mut self, account: Account) -> Account {
        let now = Instant::now();
        *self.times.entry(self.account).or_default() += now - self.since;
        self.since = now;
        std::mem::replace(&mut self.account, account)
    }
}

/// The accounts of one thread's work; clones share them.
#[derive(Clone)]
pub struct Profile(Rc<RefCell<Clock>>);

impl Profile {
    /// A clock that runs on [`IDLE`].
    pub fn start() -> Self {
        let clock = Clock { account: IDLE, since: Instant::now(), times: BTreeMap::new() };
        Self(Rc::new(RefCell::new(clock)))
    }

    /// Moves the clock to an account for as long as the span lives.
    pub fn span(&self, operation: &'static str, pass: Pass) -> Span {
        let before = self.0.borrow_mut().switch((operation, pass));
        Span { profile: self.clone(), before }
    }

    /// What each account has taken since the start or the last call.
    pub fn take(&self) -> BTreeMap<Account, Duration> {
        let mut clock = self.0.borrow_mut();
        let account = clock.account;
        clock.switch(account);
        std::mem::take(&mut clock.times)
    }
}

/// While it lives, the clock runs on its account.
#[must_use = "the clock moves back when the span is dropped"]
pub struct Span {
    profile: Profile,
    before: Account,
}

impl Drop for Span {
    fn drop(&mut self) {
        self.profile.0.borrow_mut().switch(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_spans_share_the_time_and_lose_none() {
        let begun = Instant::now();
        let profile = Profile::start();
        {
            let _outer = profile.span("outer", Pass::Backward);
            std::thread::sleep(Duration::from_millis(5));
            {
                let _inner = profile.span("inner", Pass::Recompute);
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let times = profile.take();
        let elapsed = begun.elapsed();
        assert!(times[&("inner", Pass::Recompute)] >= Duration::from_millis(10));
        assert!(times[&("outer", Pass::Backward)] >= Duration::from_millis(10));
        assert!(times.values().sum::<Duration>() <= elapsed);
        assert!(times.contains_key(&IDLE));
        assert!(profile.take().keys().eq([&IDLE]), "taking empties the accounts");
    }
}
