//! From the pairs of a step to rows of the table: every check of a single tensor.

use crate::arena::{Arena, PHASES, Slot};
use crate::device::{Device, Elsewhere, Guards};
use crate::error::{Buffer, Error, Result};
use crate::register::Tensor;
use crate::table::{MasterRow, SumRow, TensorRow, row_flags};
use crate::tensor::{Dtype, Elements, GradView, Located, Pair};

/// Elements in memory of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    address: u64,
    len: usize,
    dtype: Dtype,
    writable: bool,
}

impl Named {
    /// Or where they lie instead.
    #[inline]
    pub(crate) fn of<'a, V: Located<'a>>(
        elements: Elements<V>,
        device: &'a Device,
        guards: &mut Guards<'a>,
    ) -> Result<Self, Elsewhere> {
        let Elements { place, dtype, len, writable } = elements;
        Ok(Self { address: guards.address(device, place)?, len, dtype, writable })
    }
}

/// All of a pair that matters to a step: who names the same steps the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamedPair {
    pub(crate) param: Named,
    pub(crate) grad: Option<Named>,
}

impl Tensor {
    #[inline]
    pub(crate) fn named<'a>(&self, pair: Pair<'a>, device: &'a Device, guards: &mut Guards<'a>) -> Result<NamedPair> {
        let wrong = |buffer| move |place| self.wrong_device(buffer, device, place);
        let param = Named::of(pair.param.0, device, guards).map_err(wrong(Buffer::Param))?;
        let grad = pair.grad.0.map(|grad| Named::of(grad, device, guards).map_err(wrong(Buffer::Grad)));
        Ok(NamedPair { param, grad: grad.transpose()? })
    }

    #[cold]
    fn wrong_device(&self, buffer: Buffer, device: &Device, Elsewhere { place, remedy }: Elsewhere) -> Error {
        Error::WrongDevice { tensor: self.id.clone(), buffer, expected: device.describe(), actual: place, remedy }
    }

    /// Its gradient for the sum, without the sum's address.
    pub(crate) fn sum_row<'a>(
        &self,
        grad: Elements<GradView<'a>>,
        first: bool,
        device: &'a Device,
        guards: &mut Guards<'a>,
    ) -> Result<SumRow> {
        let grad = Named::of(grad, device, guards);
        let grad = grad.map_err(|place| self.wrong_device(Buffer::Grad, device, place))?;
        self.check_address(Buffer::Grad, grad)?;
        let flags = row_flags::HAS_GRAD | if first { row_flags::FIRST } else { 0 };
        Ok(SumRow { grad: grad.address, grad_dtype: grad.dtype.code(), flags, ..SumRow::default() })
    }

    /// Its row; of a tensor without a gradient, the parameter alone. `zero_grad`: gradients will be written.
    pub(crate) fn row(
        &self,
        NamedPair { param, grad }: &NamedPair,
        zero_grad: bool,
        arenas: &[Arena],
    ) -> Result<TensorRow> {
        self.check(Buffer::Param, *param)?;
        self.check_dtype(param.dtype)?;
        let row = TensorRow { param: param.address, param_dtype: param.dtype.code(), ..TensorRow::default() };
        let Some(grad) = *grad else { return Ok(row) };
        self.check(Buffer::Grad, grad)?;
        if zero_grad && !grad.writable {
            return Err(Error::SharedGrad { tensor: self.id.clone() });
        }
        let flags = row_flags::HAS_GRAD;
        Ok(self.with_state(TensorRow { grad: grad.address, grad_dtype: grad.dtype.code(), flags, ..row }, arenas))
    }

    pub(crate) fn check_len(&self, buffer: Buffer, actual: usize) -> Result<()> {
        if actual == self.len {
            return Ok(());
        }
        Err(Error::Length { tensor: self.id.clone(), buffer, expected: self.len, actual })
    }

    fn check_dtype(&self, actual: Dtype) -> Result<()> {
        match self.dtype.filter(|&expected| expected != actual) {
            None => Ok(()),
            Some(expected) => Err(Error::Dtype { tensor: self.id.clone(), buffer: Buffer::Param, expected, actual }),
        }
    }

    fn check(&self, buffer: Buffer, named: Named) -> Result<()> {
        self.check_len(buffer, named.len)?;
        self.check_address(buffer, named)
    }

    /// Of elements as many as the tensor has.
    fn check_address(&self, buffer: Buffer, Named { address, dtype, .. }: Named) -> Result<()> {
        let tensor = || self.id.clone();
        let (alignment, bytes) = (dtype.size() as u64, (self.len * dtype.size()) as u64);
        if self.len > 0 && address == 0 {
            return Err(Error::NullPointer { tensor: tensor(), buffer, len: self.len });
        }
        if self.len > 0 && !address.is_multiple_of(alignment) {
            return Err(Error::Misaligned { tensor: tensor(), buffer, address, alignment });
        }
        if self.len > 0 && address.checked_add(bytes).is_none() {
            return Err(Error::PastTheEnd { tensor: tensor(), buffer, address, bytes });
        }
        Ok(())
    }

    /// Of a row with parameter and gradient.
    pub(crate) fn with_state(&self, row: TensorRow, arenas: &[Arena]) -> TensorRow {
        let (param, grad) = (row.param_dtype(), row.grad_dtype());
        let phase = self.phase_for(row.param, param);
        let at = |slot: Slot| arenas[slot.arena].address() + 4 * (slot.offset + phase) as u64;
        let head = (PHASES - phase) % PHASES;
        let aligned =
            |address: u64, dtype: Dtype| address.wrapping_add((head * dtype.size()) as u64).is_multiple_of(16);
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        let master = self.master.filter(|_| param.is_narrow());
        #[expect(clippy::cast_possible_truncation, reason = "below 8")]
        let head_u8 = head as u8;
        TensorRow {
            m: at(self.m),
            v: at(self.v),
            vmax: self.vmax.map_or(0, at),
            master: master.map_or(0, at),
            head: head_u8,
            flags: row.flags
                | flag(aligned(row.param, param), row_flags::PARAM_ALIGNED)
                | flag(aligned(row.grad, grad), row_flags::GRAD_ALIGNED),
            ..row
        }
    }

    /// As long as the state is all zeros, it can begin anywhere in its slots. An empty tensor has no slot to begin in.
    #[expect(clippy::cast_possible_truncation, reason = "below 8")]
    fn phase_for(&self, param: u64, dtype: Dtype) -> usize {
        if self.started || self.len == 0 { self.phase } else { (param / dtype.size() as u64 % PHASES as u64) as usize }
    }

    /// The step that `row` describes has been launched.
    pub(crate) fn stepped(&mut self, row: &TensorRow) {
        let dtype = row.param_dtype();
        self.phase = self.phase_for(row.param, dtype);
        self.dtype = Some(dtype);
        self.init_master = false;
        self.started = true;
    }
}

impl TensorRow {
    #[inline]
    pub(crate) fn has_grad(&self) -> bool {
        self.flags & row_flags::HAS_GRAD != 0
    }

    pub(crate) fn param_dtype(&self) -> Dtype {
        Dtype::of_code(self.param_dtype)
    }

    /// For its master to be read; it has none where its parameter is f32 or has no gradient.
    pub(crate) fn master_row(&self) -> MasterRow {
        MasterRow { param: self.param, master: self.master, param_dtype: self.param_dtype, ..MasterRow::default() }
    }

    pub(crate) fn grad_dtype(&self) -> Dtype {
        Dtype::of_code(self.grad_dtype)
    }
}
