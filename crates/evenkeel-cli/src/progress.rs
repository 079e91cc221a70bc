//! Progress on stderr: a bar on a terminal, one plain line now and then elsewhere.

use crate::output;
use crate::settings::Settings;
use evenkeel::train::{Event, StepLine};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// A bar, or nothing.
pub(crate) fn bar(settings: &Settings, total: u64, template: &str) -> ProgressBar {
    if !settings.bars {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}

/// Prints a training run's events.
pub(crate) struct TrainProgress {
    quiet: bool,
    verbose: bool,
    bar: ProgressBar,
    name: String,
    begun: Instant,
    from: u64,
    steps: u64,
    worst: String,
    printed: Option<Instant>,
}

impl TrainProgress {
    pub(crate) fn new(settings: &Settings, name: &str, steps: u64) -> Self {
        let bar = bar(settings, steps, "{prefix} {bar:24} {pos}/{len} {msg} · {eta} left");
        bar.set_prefix(name.to_string());
        Self {
            quiet: settings.quiet,
            verbose: settings.verbose,
            bar,
            name: name.to_string(),
            begun: Instant::now(),
            from: 0,
            steps,
            worst: String::new(),
            printed: None,
        }
    }

    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Begin { step, steps } => {
                (self.from, self.steps, self.begun) = (*step, *steps, Instant::now());
                self.bar.set_position(*step);
                if *step > 0 && *step < *steps && !self.quiet {
                    self.say(&format!("{}: goes on after step {step}", self.name));
                }
            }
            Event::Stats { summary, .. } => {
                if let (Some(k), Some(site)) = (summary.kurtosis_max, &summary.kurtosis_max_site) {
                    self.worst = format!(" · kurtosis {k:.2} at {site}");
                }
            }
            Event::Step { line, logged } => {
                self.bar.set_position(line.step);
                if *logged {
                    let text = self.figures(line);
                    self.bar.set_message(text.clone());
                    self.plain(line, &text);
                }
            }
            Event::Eval { step, evaluation } => {
                if !self.quiet && (self.verbose || *step == self.steps) {
                    let accuracy = evaluation.accuracy;
                    let accuracy =
                        accuracy.map_or(String::new(), |a| format!(", accuracy {:.2}%", 100.0 * a));
                    self.say(&format!(
                        "{}: step {step}, validation loss {:.4}{accuracy}",
                        self.name, evaluation.loss
                    ));
                }
            }
            Event::Alarm { line } => {
                if !self.quiet {
                    self.say(&format!("{}: step {}, alarm: {line}", self.name, line.step));
                }
            }
            Event::Skipped { step, why, in_all } => {
                if !self.quiet {
                    self.say(&format!("{}: step {step} was left out, {why} ({in_all} so far)", self.name));
                }
            }
            Event::Checkpoint { path } => {
                if self.verbose {
                    self.say(&format!("{}: checkpoint {}", self.name, path.display()));
                }
            }
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn figures(&self, line: &StepLine) -> String {
        let loss = line.train_loss.map_or("-".into(), |l| format!("{l:.3}"));
        let rate = line.tokens_per_sec.map_or("-".into(), |r| format!("{r:.0}"));
        format!("loss {loss} · lr {:.1e} · {rate} tokens/s{}", line.lr, self.worst)
    }

    /// A line every ten seconds where there is no bar.
    fn plain(&mut self, line: &StepLine, text: &str) {
        if self.quiet || !self.bar.is_hidden() {
            return;
        }
        let due = self.printed.is_none_or(|t| t.elapsed() > Duration::from_secs(10));
        if due || line.step == self.steps {
            self.printed = Some(Instant::now());
            let done = (line.step - self.from).max(1) as f64;
            let left = self.begun.elapsed().as_secs_f64() / done * (self.steps - line.step) as f64;
            let left = humantime::format_duration(Duration::from_secs(left as u64));
            output::note(&format!("{}: step {}/{} · {text} · {left} left", self.name, line.step, self.steps));
        }
    }

    fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            output::note(text);
        } else {
            self.bar.println(text);
        }
    }
}
