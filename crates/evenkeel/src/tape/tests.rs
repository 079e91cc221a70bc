//! Gradients by hand, cut gradients, profiles.

use super::*;
use candle_core::Device;

#[test]
fn composed_gradients_add_up_and_repeat() -> Result<()> {
    let x = Tensor::new(&[1.0f64, 2.0, 3.0], &Device::Cpu)?;
    let mut gradients = Gradients::like([&x])?;
    for round in 1..=2 {
        let tape = Tape::recording();
        let p = tape.parameter(0, &x);
        // y = x² + x² through two nodes, so the gradient is 4x.
        let a = tape.compose(&[&p], |t| t[0].sqr())?;
        let b = tape.compose(&[&p, &a], |t| t[0].sqr()? + &t[1])?;
        let loss = tape.compose(&[&b], |t| t[0].sum_all())?;
        tape.backward(&loss, 1.0, &mut gradients)?;
        let want: Vec<f64> = [4.0, 8.0, 12.0].iter().map(|v| v * round as f64).collect();
        assert_eq!(gradients.get(0).to_vec1::<f64>()?, want);
    }
    gradients.clear();
    Ok(())
}

#[test]
fn a_cut_gradient_is_an_error() -> Result<()> {
    let x = Tensor::new(&[1.0f64], &Device::Cpu)?;
    let mut gradients = Gradients::like([&x])?;
    let tape = Tape::recording();
    let p = tape.parameter(0, &x);
    let y = tape.compose(&[&p], |t| t[0].detach().sum_all())?;
    assert!(tape.backward(&y, 1.0, &mut gradients).is_err());
    Ok(())
}

#[test]
fn a_profile_sees_operations_in_every_pass() -> Result<()> {
    let x = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
    let mut gradients = Gradients::like([&x])?;
    let profile = Profile::start();
    let tape = Tape::recording().profiled(&profile);
    let p = tape.parameter(0, &x);
    let kept = crate::ops::linear(&tape, &p, &p, None, None)?;
    let forgotten = |tape: &Tape, x: &[Value]| crate::ops::linear(tape, &x[0], &x[0], None, None);
    let plain = Value::constant(kept.tensor().clone());
    let output = forgotten(&tape.twin_off(), &[plain])?.tensor().clone();
    let y = tape.push_forgotten(output, &[&kept], forgotten);
    tape.backward(&y, 1.0, &mut gradients)?;
    let accounts: Vec<_> = profile.take().into_keys().collect();
    let want = [
        ("linear", Pass::Forward),
        ("linear", Pass::Recompute),
        ("linear", Pass::Backward),
        ("other", Pass::Other),
        ("recompute", Pass::Backward),
    ];
    assert_eq!(accounts, want);
    Ok(())
}

#[test]
fn off_keeps_nothing() -> Result<()> {
    let tape = Tape::off();
    let x = tape.parameter(0, &Tensor::new(1.0f64, &Device::Cpu)?);
    assert!(!x.needs_gradient());
    Ok(())
}
