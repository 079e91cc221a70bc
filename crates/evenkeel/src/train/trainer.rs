//! One run, step by step.

use super::alarms::{AlarmLine, Alarms};
use super::guard::{Divergence, Guard, locate};
use super::log::{LineLog, StatsLine, StepLine};
use super::moments::MomentTracker;
use super::prepare::{Prepared, check_same, check_states, groups_of};
use super::tensorboard::EventLog;
use super::updates::{UpdateSummary, UpdateTracker};
use super::{Evaluation, Feed, InOrder, RunDir, due, evaluate, measured, peak_rss_bytes};
use crate::checkpoint::{self, RunState};
use crate::config::{AlarmAction, ConfigError, RunConfig};
use crate::data::Split;
use crate::error::Result;
use crate::metrics::{KurtosisSummary, Metrics, MetricsTap, SiteStats, summarise};
use crate::model::{Examples, Transformer};
use crate::names::{BadPattern, NameFilter};
use crate::optim::skip::{SkipRule, SkipState, Skipped};
use crate::optim::{self, Groups, Schedule, State};
use crate::random;
use crate::tap::{NoTap, Site, Tap};
use crate::tape::{Gradients, Noise, Tape};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How the outside asks a run to stop.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Set to finish the step at hand, write a checkpoint and return.
    pub stop: Arc<AtomicBool>,
}

/// What a run reports while it goes.
#[derive(Debug)]
pub enum Event<'a> {
    /// It begins, or goes on, after this many steps.
    Begin {
        /// Steps already finished.
        step: u64,
        /// Steps in all.
        steps: u64,
    },
    /// A step was finished.
    Step {
        /// Its figures.
        line: &'a StepLine,
        /// Whether it was written to metrics.jsonl.
        logged: bool,
    },
    /// Sites were measured.
    Stats {
        /// Steps finished.
        step: u64,
        /// The residual stream in three figures.
        summary: KurtosisSummary,
    },
    /// An alarm fired.
    Alarm {
        /// Its line in alarms.jsonl.
        line: &'a AlarmLine,
    },
    /// A step was left out: the parameters did not move.
    Skipped {
        /// Steps finished, this one included.
        step: u64,
        /// Why.
        why: Skipped,
        /// How many were left out so far.
        in_all: u64,
    },
    /// The validation text was evaluated.
    Eval {
        /// Steps finished.
        step: u64,
        /// Result.
        evaluation: Evaluation,
    },
    /// A checkpoint is on disk.
    Checkpoint {
        /// Its folder.
        path: &'a Path,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps done.
    Finished,
    /// Stopped from outside; the checkpoint holds everything.
    Interrupted,
    /// Stopped by the guard at this step.
    Diverged(Divergence),
    /// Stopped by an alarm whose action says so; the checkpoint holds everything, and the run can go on.
    Alarmed(AlarmLine),
}

/// A run.
pub struct Trainer {
    config: RunConfig,
    dir: RunDir,
    feed: Feed,
    model: Transformer,
    groups: Groups,
    schedule: Schedule,
    filter: NameFilter,
    gradients: Gradients,
    states: Vec<State>,
    step: u64,
    guard: Guard,
    skip_rule: SkipRule,
    skip: SkipState,
    updates: UpdateTracker,
    metrics_log: LineLog,
    stats_log: LineLog,
    alarms: Alarms,
    moments: Option<MomentTracker>,
    events: Option<EventLog>,
}

/// What one step computed before the parameters moved.
struct StepResult {
    loss: f64,
    grad_norm: f64,
    stats: Option<Vec<(Site, StatsLine)>>,
}

/// What became of the parameters: they moved, or the step was left out.
enum Moved {
    By(UpdateSummary),
    Not(Skipped),
}

impl Trainer {
    /// Prepares a run in `dir`: from the newest complete checkpoint there if `resume`, else from the start.
    ///
    /// # Errors
    /// If the run was started with another configuration, its checkpoint is damaged, or the disk refuses.
    pub fn new(prepared: Prepared, dir: RunDir, resume: bool) -> Result<Self> {
        let Prepared { config, feed, start } = prepared;
        let checkpoint = if resume { checkpoint::complete(&dir.checkpoints())?.pop() } else { None };
        let (model, states, state) = match (&checkpoint, start) {
            (Some(folder), _) => {
                let model = checkpoint::load_model(folder)?;
                check_same(&dir, &config, &model)?;
                let (states, state) = checkpoint::load_state(folder, &model)?;
                (model, states, state)
            }
            (None, start) => {
                let model = match start {
                    Some(model) => model,
                    None => Transformer::new(config.model.clone(), config.train.seed)?,
                };
                let states = vec![State::default(); model.parameters().len()];
                let fresh = RunState {
                    schema: 1,
                    step: 0,
                    tokens: 0,
                    first_loss: None,
                    guard_count: 0,
                    skip: SkipState::default(),
                    alarms: Vec::new(),
                };
                (model, states, fresh)
            }
        };
        let bad = |e: BadPattern| ConfigError::Value { problem: e.to_string() };
        let groups = groups_of(&config)?;
        if let Some(folder) = &checkpoint {
            check_states(folder, &groups, &model, &states)?;
        }
        dir.write("resolved.toml", &config.to_toml()?)?;
        let filter = NameFilter::new(&config.telemetry.measured_sites(&config.alarm)).map_err(bad)?;
        let gradients = Gradients::like(model.parameters().iter().map(|p| &p.tensor))?;
        Ok(Self {
            schedule: config.optim.schedule(config.train.steps),
            guard: Guard {
                factor: config.train.guard_loss_factor,
                patience: config.train.guard_patience_steps,
                first_loss: state.first_loss,
                count: state.guard_count,
            },
            skip_rule: config.optim.skip_rule(),
            skip: state.skip,
            updates: UpdateTracker::open(&config, &dir, state.step)?,
            metrics_log: LineLog::open(&dir.metrics(), state.step)?,
            stats_log: LineLog::open(&dir.stats(), state.step)?,
            alarms: Alarms::open(&config.alarm, &dir, &state)?,
            moments: MomentTracker::open(&config, &feed, &dir, state.step)?,
            events: EventLog::open_if(
                config.telemetry.tensorboard,
                &dir.tensorboard(),
                state.step,
                config.model.depth,
            )?,
            step: state.step,
            config,
            dir,
            feed,
            model,
            groups,
            filter,
            gradients,
            states,
        })
    }

    /// Steps finished.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The configuration as used.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The model, whose parameters change as the run goes on.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// What the run is fed with.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Runs to the end, to an interruption, or until the guard or an alarm stops it. The last step is always checkpointed.
    ///
    /// # Errors
    /// If data cannot be read, the disk refuses, or a decomposition fails.
    pub fn run(&mut self, control: &Control, observe: &mut dyn FnMut(Event)) -> Result<Outcome> {
        let steps = self.config.train.steps;
        observe(Event::Begin { step: self.step, steps });
        let mut clock = (Instant::now(), self.step);
        while self.step < steps {
            if control.stop.load(Ordering::Relaxed) {
                self.checkpoint(observe)?;
                return Ok(Outcome::Interrupted);
            }
            let batch = match self.feed.batch(self.step) {
                Ok(batch) => batch,
                Err(e) => {
                    // A file that went bad in the middle of a run is no reason to lose the steps before it.
                    self.checkpoint(observe)?;
                    return Err(e);
                }
            };
            let result = self.forward_backward(&batch)?;
            let skipped = self.skip_rule.judge(&mut self.skip, result.loss, result.grad_norm);
            if skipped != Some(Skipped::NonFinite)
                && let Some(divergence) = self.guard.check(result.loss, result.grad_norm)
            {
                let divergence = locate(divergence, &self.model, &batch, self.gradients.all())?;
                return Ok(Outcome::Diverged(divergence));
            }
            let lr = self.schedule.lr(self.step);
            if let Some(moments) = &mut self.moments {
                moments.before(&self.model, self.step)?;
            }
            let moved = match skipped {
                None => Moved::By(self.update(result.grad_norm, lr)?),
                Some(why) => Moved::Not(why),
            };
            self.step += 1;
            if let Some(moments) = &mut self.moments {
                let lines = moments.after(&self.model, self.step)?;
                if let Some(events) = &mut self.events {
                    events.moments(self.step, &lines)?;
                }
            }
            let fired = self.report(&result, &moved, lr, &mut clock, observe)?;
            let saves = fired.iter().any(|alarm| alarm.action != AlarmAction::Log);
            if saves || due(self.step, self.config.train.checkpoint_every_steps, steps) {
                self.checkpoint(observe)?;
            }
            if let Some(alarm) = fired.into_iter().find(|alarm| alarm.action == AlarmAction::Stop) {
                return Ok(Outcome::Alarmed(alarm));
            }
        }
        Ok(Outcome::Finished)
    }

    fn forward_backward(&mut self, batch: &Examples) -> Result<StepResult> {
        let steps = self.config.train.steps;
        let telemetry = &self.config.telemetry;
        let measure = measured(self.step, telemetry.stats_every_steps, steps);
        let selection = telemetry.selection(measured(self.step, telemetry.gram_every_steps, steps));
        let (mut nothing, mut metrics) = (NoTap, MetricsTap::with(Some(self.filter.clone()), selection));
        let tap: &mut dyn Tap = if measure { &mut metrics } else { &mut nothing };
        self.gradients.clear();
        let mut loss = 0.0;
        let mut noise = Noise { key: random::key(&[self.config.train.seed, self.step]), first_sequence: 0 };
        for part in batch.micro(self.config.train.micro_batch_sequences)? {
            let share = part.sequences() as f64 / batch.sequences() as f64;
            let tape = Tape::recording_as(self.config.train.execution()).with_noise(noise);
            noise.first_sequence += part.sequences();
            let value = self.model.loss_of(&tape, tap, &part)?;
            loss += share * value.tensor().to_scalar::<f32>()? as f64;
            tape.backward(&value, share, &mut self.gradients)?;
        }
        let stats =
            measure.then(|| metrics.stats.iter().map(|(&site, stats)| self.line(site, stats)).collect());
        let begun = Instant::now();
        let grad_norm = optim::global_norm(self.gradients.all())?;
        self.updates.spend(begun.elapsed());
        Ok(StepResult { loss, grad_norm, stats })
    }

    /// A line of stats.jsonl for the step at hand.
    fn line(&self, site: Site, stats: &SiteStats) -> (Site, StatsLine) {
        let line = StatsLine {
            step: self.step + 1,
            site: site.to_string(),
            layer: site.layer,
            mmr_tokens: stats.mmr_tokens(),
            gram_tokens: stats.gram_tokens(),
            metrics: stats.metrics(),
        };
        (site, line)
    }

    /// Clips the gradients and moves the parameters.
    fn update(&mut self, grad_norm: f64, lr: f64) -> Result<UpdateSummary> {
        let (step, t) = (self.step + 1, &self.config.train);
        let logged =
            step == 1 || [t.log_every_steps, t.eval_every_steps].iter().any(|&e| due(step, e, t.steps));
        let (model, gradients, groups, o) = (&self.model, &self.gradients, &self.groups, &self.config.optim);
        self.updates.watch(step, logged, (model, gradients, groups), &mut self.states, |states| {
            let mut norm = grad_norm;
            if o.clip_value > 0.0 {
                optim::clip_value(gradients.all(), o.clip_value)?;
                norm = optim::global_norm(gradients.all())?;
            }
            optim::clip(gradients.all(), norm, o.clip_norm)?;
            let parameters = model.parameters().iter().zip(states);
            groups.step(parameters.map(|(p, state)| (&p.tensor, gradients.get(p.index), state)), lr)?;
            Ok(())
        })
    }

    fn report(
        &mut self,
        result: &StepResult,
        moved: &Moved,
        lr: f64,
        clock: &mut (Instant, u64),
        observe: &mut dyn FnMut(Event),
    ) -> Result<Vec<AlarmLine>> {
        let mut fired = Vec::new();
        let t = &self.config.train;
        let per_step = (t.batch_sequences * self.config.model.context) as u64;
        // Taken before evaluating, which is not training.
        let elapsed = clock.0.elapsed().as_secs_f64();
        if let Some(stats) = &result.stats {
            for (_, line) in stats {
                self.stats_log.append(line)?;
            }
            let summary = summarise(stats.iter().map(|(s, line)| (*s, &line.metrics)));
            observe(Event::Stats { step: self.step, summary });
            let metrics: Vec<(Site, Metrics)> = stats.iter().map(|(s, line)| (*s, line.metrics)).collect();
            let gram = measured(self.step - 1, self.config.telemetry.gram_every_steps, t.steps);
            // What is not finite is above every bound; where the run is to bear it, so are its alarms.
            if !matches!(moved, Moved::Not(Skipped::NonFinite)) {
                fired = self.alarms.check(self.step, gram, &metrics)?;
            }
            for line in &fired {
                observe(Event::Alarm { line });
            }
            if let Some(events) = &mut self.events {
                events.stats(self.step, stats.iter().map(|(_, line)| line))?;
                events.alarms(self.step, &fired)?;
            }
        }
        let evaluation = if due(self.step, t.eval_every_steps, t.steps) { self.validate()? } else { None };
        if let Some(evaluation) = evaluation {
            observe(Event::Eval { step: self.step, evaluation });
        }
        let (update, skipped) = match *moved {
            Moved::By(update) => (update, None),
            Moved::Not(why) => (UpdateSummary::default(), Some(why)),
        };
        if let Some(why) = skipped {
            observe(Event::Skipped { step: self.step, why, in_all: self.skip.skipped });
        }
        let regular = self.step == 1 || due(self.step, t.log_every_steps, t.steps);
        let logged = regular || evaluation.is_some() || skipped.is_some();
        let mut line = StepLine {
            step: self.step,
            tokens: self.step * per_step,
            train_loss: Some(result.loss),
            val_loss: evaluation.map(|e| e.loss),
            val_accuracy: evaluation.and_then(|e| e.accuracy),
            lr,
            grad_norm: Some(result.grad_norm),
            tokens_per_sec: (elapsed > 0.0).then(|| ((self.step - clock.1) * per_step) as f64 / elapsed),
            mem_peak: if logged { peak_rss_bytes() } else { None },
            update_ratio: update.ratio,
            condition: update.condition,
            optimizer_share: None,
            skipped: self.skip.skipped,
        };
        if logged {
            line.optimizer_share = (elapsed > 0.0).then(|| self.updates.take_seconds() / elapsed);
            self.metrics_log.append(&line)?;
            if let Some(events) = &mut self.events {
                events.step(&line)?;
            }
            *clock = (Instant::now(), self.step);
        }
        observe(Event::Step { line: &line, logged });
        Ok(fired)
    }

    /// Loss on the validation text or images, and accuracy on images; `None` if the data has none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn validate(&self) -> Result<Option<Evaluation>> {
        match self.validation_inputs(self.config.train.eval_tokens)? {
            Some(examples) => evaluate(&self.model, examples, None).map(Some),
            None => Ok(None),
        }
    }

    /// The validation text in blocks of the training length, or the validation images: in order, as batches of the training
    /// size that hold at most `most_tokens` positions together (0 for all); `None` if the data has none.
    ///
    /// # Errors
    /// If the text is shorter than one block.
    pub fn validation_inputs(&self, most_tokens: u64) -> Result<Option<InOrder>> {
        if self.feed.is_empty(Split::Val) {
            return Ok(None);
        }
        let most = (most_tokens > 0).then_some(most_tokens);
        self.feed.in_order(&self.config.model, Split::Val, self.config.train.batch_sequences, most).map(Some)
    }

    fn checkpoint(&self, observe: &mut dyn FnMut(Event)) -> Result<()> {
        let per_step = (self.config.train.batch_sequences * self.config.model.context) as u64;
        let state = RunState {
            schema: 1,
            step: self.step,
            tokens: self.step * per_step,
            first_loss: self.guard.first_loss,
            guard_count: self.guard.count,
            skip: self.skip,
            alarms: self.alarms.counts(),
        };
        let companion = self.feed.companion();
        let path = checkpoint::save(
            &self.dir.checkpoints(),
            &self.model,
            &self.states,
            companion.as_ref(),
            &state,
            self.config.train.checkpoint_keep,
        )?;
        observe(Event::Checkpoint { path: &path });
        Ok(())
    }
}
