//! Between candle's tensors and the kernels' slices, without copying.
//!
//! Reading takes the storage's read lock for as long as the slice lives; writing goes through candle's
//! in-place custom operation, which is the only public way to `&mut` a storage. Locks are taken on the
//! calling thread, once per storage, before any kernel goes parallel.

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};
use std::cell::RefCell;
use std::ops::Deref;

/// Whether the kernels can take this tensor: float32 on the CPU.
pub fn is_fast(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32 && tensor.device().is_cpu()
}

/// A contiguous float32 CPU tensor's elements, locked for reading.
pub struct Slice<'a> {
    guard: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl Deref for Slice<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            // `slice` is the only constructor and checked the variant.
            _ => &[],
        }
    }
}

/// Borrows a tensor's elements.
///
/// # Errors
/// If it is not float32, not on the CPU or not contiguous.
pub fn slice(tensor: &Tensor) -> Result<Slice<'_>> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel was given a tensor that is not contiguous");
    };
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Slice { guard, start, end }),
        _ => bail!("a kernel was given a tensor that is not float32 on the CPU"),
    }
}

/// A tensor that takes over `data`.
///
/// # Errors
/// If the shape does not hold exactly `data.len()` elements.
pub fn tensor(data: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

struct Mutate<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Mutate<F> {
    fn name(&self) -> &'static str {
        "evenkeel-mutate"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("a kernel was asked to write into a tensor that is not contiguous float32");
        };
        match self.0.borrow_mut().take() {
            Some(f) => f(&mut data[start..end]),
            None => bail!("an in-place operation ran twice"),
        }
    }
}

/// Runs `f` on a tensor's elements, in place. Every clone of the tensor sees the change.
///
/// # Errors
/// What `f` returns, or if the tensor is not contiguous float32 on the CPU.
pub fn with_slice_mut<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    let mut result = None;
    let op = Mutate(RefCell::new(Some(|data: &mut [f32]| {
        result = Some(f(data)?);
        Ok(())
    })));
    tensor.inplace_op1(&op)?;
    drop(op);
    match result {
        Some(result) => Ok(result),
        None => bail!("an in-place operation did not run"),
    }
}

/// What runs on several tensors' elements.
type Body<'a, R> = Box<dyn FnOnce(&mut [&mut [f32]]) -> Result<R> + 'a>;

/// Runs `f` on several tensors' elements at once, in place.
///
/// # Errors
/// As [`with_slice_mut`]; and if two of the tensors share a storage, which would lock it twice.
pub fn with_slices_mut<R>(tensors: &[&Tensor], f: impl FnOnce(&mut [&mut [f32]]) -> Result<R>) -> Result<R> {
    for (i, a) in tensors.iter().enumerate() {
        let storage: *const Storage = &*a.storage_and_layout().0;
        if tensors[..i].iter().any(|b| std::ptr::eq(storage, &*b.storage_and_layout().0)) {
            bail!("an in-place operation was given the same storage twice");
        }
    }
    fn nest<R>(tensors: &[&Tensor], held: Vec<&mut [f32]>, f: Body<'_, R>) -> Result<R> {
        let mut held = held;
        match tensors.split_first() {
            None => f(&mut held),
            Some((first, rest)) => with_slice_mut(first, |data| {
                let mut held: Vec<&mut [f32]> = held.iter_mut().map(|s| &mut **s).collect();
                held.push(data);
                nest(rest, held, f)
            }),
        }
    }
    nest(tensors, Vec::new(), Box::new(f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_see_in_place_changes() -> Result<()> {
        let a = tensor(vec![1.0, 2.0], 2)?;
        let b = tensor(vec![5.0, 6.0], 2)?;
        let alias = a.clone();
        with_slices_mut(&[&a, &b], |s| {
            let (x, y) = s.split_at_mut(1);
            x[0][0] = y[0][1];
            Ok(())
        })?;
        assert_eq!(slice(&alias)?.to_vec(), vec![6.0, 2.0]);
        Ok(())
    }

    #[test]
    fn aliases_and_wrong_types_are_refused() -> Result<()> {
        let a = tensor(vec![1.0, 2.0], 2)?;
        assert!(with_slices_mut(&[&a, &a.clone()], |_| Ok(())).is_err());
        assert!(slice(&a.to_dtype(DType::F64)?).is_err());
        let wide = tensor(vec![0.0; 6], (2, 3))?;
        assert!(slice(&wide.t()?).is_err() && slice(&wide.narrow(0, 1, 1)?)?.len() == 3);
        Ok(())
    }
}
