//! From the pairs of a step to rows of the table: every check of a single tensor.

use crate::arena::{Arena, PHASES, Slot};
use crate::device::{Device, Guards};
use crate::error::{Buffer, Error, Result};
use crate::register::Tensor;
use crate::table::{SumRow, TensorRow, row_flags};
use crate::tensor::{Dtype, Elements, Grad, GradView, Pair};

impl Tensor {
    fn expect<V>(&self, buffer: Buffer, given: &Elements<V>) -> Result<()> {
        if given.len == self.len {
            return Ok(());
        }
        Err(Error::Length { tensor: self.id.clone(), buffer, expected: self.len, actual: given.len })
    }

    /// Length and dtype, before any memory is touched; and whether a gradient may be written, if it will be.
    pub(crate) fn check(&self, pair: &Pair<'_>, zero_grad: bool) -> Result<()> {
        self.expect(Buffer::Param, &pair.param.0)?;
        self.check_grad(&pair.grad)?;
        if zero_grad && pair.grad.0.as_ref().is_some_and(|grad| !grad.writable) {
            return Err(Error::SharedGrad { tensor: self.id.clone() });
        }
        match self.dtype.filter(|&expected| expected != pair.param.0.dtype) {
            None => Ok(()),
            Some(expected) => Err(Error::Dtype {
                tensor: self.id.clone(),
                buffer: Buffer::Param,
                expected,
                actual: pair.param.0.dtype,
            }),
        }
    }

    pub(crate) fn check_grad(&self, grad: &Grad<'_>) -> Result<()> {
        grad.0.as_ref().map_or(Ok(()), |grad| self.expect(Buffer::Grad, grad))
    }

    /// Its gradient for the sum, without the sum's address.
    pub(crate) fn sum_row<'a>(
        &self,
        grad: Elements<GradView<'a>>,
        first: bool,
        device: &'a Device,
        guards: &mut Guards<'a>,
    ) -> Result<SumRow> {
        let address = guards.address(device, grad.place);
        let address = self.address(Buffer::Grad, grad.dtype, device, address)?;
        let flags = row_flags::HAS_GRAD | if first { row_flags::FIRST } else { 0 };
        Ok(SumRow { grad: address, grad_dtype: grad.dtype.code(), flags, ..SumRow::default() })
    }

    /// Its row without state; of a tensor without a gradient, the parameter alone.
    pub(crate) fn row<'a>(
        &self,
        pair: Pair<'a>,
        device: &'a Device,
        guards: &mut Guards<'a>,
    ) -> Result<TensorRow> {
        let param_dtype = pair.param.0.dtype;
        let param = guards.address(device, pair.param.0.place);
        let param = self.address(Buffer::Param, param_dtype, device, param)?;
        let row = TensorRow { param, param_dtype: param_dtype.code(), ..TensorRow::default() };
        let Some(grad) = pair.grad.0 else { return Ok(row) };
        let address = guards.address(device, grad.place);
        let address = self.address(Buffer::Grad, grad.dtype, device, address)?;
        Ok(TensorRow { grad: address, grad_dtype: grad.dtype.code(), flags: row_flags::HAS_GRAD, ..row })
    }

    fn address(&self, buffer: Buffer, dtype: Dtype, device: &Device, found: Result<u64, String>) -> Result<u64> {
        let tensor = || self.id.clone();
        let address = found.map_err(|actual| {
            let expected = device.describe();
            Error::WrongDevice { tensor: tensor(), buffer, expected, actual }
        })?;
        let (alignment, bytes) = (dtype.size() as u64, (self.len * dtype.size()) as u64);
        if self.len > 0 && address == 0 {
            return Err(Error::NullPointer { tensor: tensor(), buffer, len: self.len });
        }
        if self.len > 0 && (!address.is_multiple_of(alignment) || address.checked_add(bytes).is_none()) {
            return Err(Error::Misaligned { tensor: tensor(), buffer, address, alignment });
        }
        Ok(address)
    }

    /// With its state, if there is a gradient to step by.
    pub(crate) fn with_state(&self, row: TensorRow, arenas: &[Arena]) -> TensorRow {
        if !row.has_grad() {
            return row;
        }
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
                | flag(aligned(row.grad, grad), row_flags::GRAD_ALIGNED)
                | flag(master.is_some() && self.init_master, row_flags::INIT_MASTER),
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
    pub(crate) fn has_grad(&self) -> bool {
        self.flags & row_flags::HAS_GRAD != 0
    }

    /// Whether both name the same parameter and the same gradient.
    pub(crate) fn is_of_the_tensors_of(&self, other: &Self) -> bool {
        let tensors = |row: &Self| (row.param, row.grad, row.param_dtype, row.grad_dtype, row.has_grad());
        tensors(self) == tensors(other)
    }

    pub(crate) fn param_dtype(&self) -> Dtype {
        Dtype::of_code(self.param_dtype)
    }

    pub(crate) fn grad_dtype(&self) -> Dtype {
        Dtype::of_code(self.grad_dtype)
    }
}
