//! Every call of the driver fails once. What was to happen has then not happened at all, and happens the next time.

use std::error::Error as _;

use fused_adamw::cudarc::driver::sys::CUresult;
use fused_adamw::cudarc::driver::{CudaContext, DriverError};
use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Error, StepOptions, TensorSpec};

use crate::driver::{allocations, emulated, fail, has_failed};
use crate::twins::{DTYPES, Shape, Twins, Values};

const ALL: StepOptions = StepOptions { grad_scale: 1.0 };
const CODE: CUresult = CUresult::CUDA_ERROR_ECC_UNCORRECTABLE;

fn assert_is_ours(error: &Error) {
    let source = error.source().unwrap_or_else(|| panic!("{error:?} has no source"));
    assert_eq!(source.downcast_ref::<DriverError>().unwrap().0, CODE, "{error:?}");
    // The driver's words are the source's, and are not said twice.
    assert!(!error.to_string().contains("DriverError"), "{error}");
}

/// A tensor in each of `groups`, of all dtypes; AMSGrad in every second one.
fn twins(device: &Device, groups: u8) -> Twins {
    let lr = |i: u8| 1e-3 * (1.0 + f64::from(i));
    let config = |i| AdamWConfig { amsgrad: i % 2 == 1, lr: lr(i), ..Default::default() };
    let groups: Vec<_> = (0..groups).map(config).collect();
    let shapes = (0..groups.len()).map(|i| Shape { group: i, ..Shape::new(3 + i % 9, DTYPES[i % 3], DTYPES[i % 2]) });
    let stream = device.stream().unwrap().context().default_stream();
    Twins::on(device, &stream, Values::Tame, &groups, shapes)
}

/// Steps `twins` with the first call failing, the second, ... until none fails any more: as many calls there are.
fn fail_each_call(mut twins: Twins, mut change: impl FnMut(&mut Twins)) -> usize {
    for k in 1.. {
        change(&mut twins);
        twins.new_grads();
        let before = twins.gpu_bits();
        fail("*", k, CODE);
        let result = twins.gpu_step(ALL, |_| true);
        let failed = has_failed();
        match result {
            Ok(()) => {
                assert!(!failed, "call {k} failed, and nobody was told");
                twins.cpu_step(ALL, |_| true).unwrap();
                twins.assert_same();
                drop(twins);
                assert_eq!(allocations(), 0, "device memory leaks");
                return k - 1;
            }
            Err(error) => {
                assert!(failed, "call {k}: {error}");
                assert_is_ours(&error);
                if matches!(error, Error::NotRecorded { .. }) {
                    // Other streams do not know of the step, and have to be told.
                    twins.gpu.device().stream().unwrap().synchronize().unwrap();
                    twins.cpu_step(ALL, |_| true).unwrap();
                } else {
                    assert!(twins.gpu_bits() == before, "call {k}: {error}, and something has changed");
                    twins.gpu_step(ALL, |_| true).unwrap();
                    twins.cpu_step(ALL, |_| true).unwrap();
                }
                twins.assert_same();
            }
        }
    }
    unreachable!()
}

#[test]
fn every_call_of_a_steady_step() {
    emulated(&[], || {
        let mut twins = twins(&Device::cuda_at(0).unwrap(), 3);
        (0..2).for_each(|_| twins.step());
        assert_eq!(fail_each_call(twins, |_| ()), 4); // with cuCtxGetCurrent before each
    });
}

#[test]
fn every_call_of_a_step_that_copies_its_table() {
    emulated(&[], || {
        let mut phase = 0;
        let moved = |twins: &mut Twins| {
            phase = (phase + 1) % 5;
            twins.move_param(0, phase);
        };
        assert!(fail_each_call(twins(&Device::cuda_at(0).unwrap(), 3), moved) > 4);
    });
}

#[test]
fn every_call_of_a_step_that_copies_its_scalars() {
    emulated(&[], || {
        assert!(fail_each_call(twins(&Device::cuda_at(0).unwrap(), 120), |_| ()) > 4);
    });
}

#[test]
fn every_call_of_a_step_between_streams() {
    emulated(&[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let mut phase = 0;
        let moved = |twins: &mut Twins| {
            phase = (phase + 1) % 5;
            twins.move_param(0, phase);
        };
        let calls = fail_each_call(twins(&Device::cuda(&stream).unwrap(), 5), moved);
        assert!(calls > 2 * 5 * 5, "{calls}"); // five waits and records a tensor, and cuCtxGetCurrent with each
    });
}

// Each call of a first step, which allocates: masters, and room for the scalars. A new optimizer each time.
#[test]
fn every_call_of_a_first_step() {
    emulated(&[], || {
        let device = Device::cuda_at(0).unwrap();
        for k in 1.. {
            let mut twins = twins(&device, 120);
            let before = twins.gpu_bits();
            fail("*", k, CODE);
            let result = twins.gpu_step(ALL, |_| true);
            if !has_failed() {
                assert!(k > 15, "{k}");
                return result.unwrap();
            }
            assert_is_ours(&result.unwrap_err());
            assert!(twins.gpu_bits() == before, "call {k}");
            twins.step();
            twins.assert_same();
            drop(twins);
            assert_eq!(allocations(), 0, "call {k}: device memory leaks");
        }
    });
}

#[test]
fn every_call_of_opening_a_device() {
    emulated(&[], || {
        for k in 1.. {
            fail("*", k, CODE);
            let result = Device::cuda_at(0);
            if !has_failed() {
                assert!(k > 8, "{k}");
                return drop(result.unwrap());
            }
            assert_is_ours(&result.unwrap_err());
        }
    });
}

fn fail_each_call_of_making_an_optimizer(device: &Device) {
    let specs = [TensorSpec::new(9), TensorSpec::new(0), TensorSpec::new(7).dtype(Dtype::F16)];
    for k in 1.. {
        fail("*", k, CODE);
        let result = AdamW::with_groups(device, &[AdamWConfig::default()], &specs);
        if !has_failed() {
            assert!(k > 15, "{k}");
            return drop(result.unwrap());
        }
        assert_is_ours(&result.err().unwrap_or_else(|| panic!("call {k} failed, and nobody was told")));
        assert_eq!(allocations(), 0, "call {k}: device memory leaks");
    }
}

#[test]
fn every_call_of_making_an_optimizer() {
    emulated(&[], || fail_each_call_of_making_an_optimizer(&Device::cuda_at(0).unwrap()));
}

// Its own memory has events, too. cudarc keeps their errors for the next call, which may be anybody's.
#[test]
fn every_call_of_making_an_optimizer_between_streams() {
    emulated(&[], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        fail_each_call_of_making_an_optimizer(&Device::cuda(&stream).unwrap());
    });
}

#[test]
fn out_of_device_memory() {
    emulated(&[], || {
        let device = Device::cuda_at(0).unwrap();
        // State, chunks, tensors.
        for (k, least) in [(1, 800), (2, 16), (3, 56)] {
            fail("cuMemAllocAsync", k, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            let error = AdamW::new(&device, AdamWConfig::default(), [100]).unwrap_err();
            let told = matches!(error, Error::OutOfMemory { bytes, gpu: Some(0), .. } if bytes >= least);
            assert!(has_failed() && told, "{error:?}");
            let source = error.source().unwrap().downcast_ref::<DriverError>().unwrap();
            assert_eq!(source.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            assert_eq!(allocations(), 0, "what was allocated before is given back");
        }
        // The master of a 16-bit parameter is allocated in its first step.
        let mut twins = twins(&device, 3);
        fail("cuMemAllocAsync", 1, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(matches!(twins.gpu_step(ALL, |_| true).unwrap_err(), Error::OutOfMemory { .. }) && has_failed());
        twins.step();
        twins.assert_same();
    });
}

// What happens between the failed call and the report is not this step's: a fault while the state is read.
#[test]
fn a_failed_read_of_the_state_is_an_error_too() {
    emulated(&[], || {
        let mut twins = twins(&Device::cuda_at(0).unwrap(), 3);
        twins.step();
        for k in 1.. {
            fail("*", k, CODE);
            let result = twins.gpu.state(1);
            if !has_failed() {
                assert!(k > 4, "{k}");
                return assert_eq!(result.unwrap(), twins.cpu.state(1).unwrap());
            }
            assert_is_ours(&result.unwrap_err());
        }
    });
}

// ---- a device that is lost: from then on every call fails, for as long as the process lives -----------------------

/// Which call of a test loses the device; each has a process of its own.
const CALL: &str = "FUSED_ADAMW_TEST_CALL";

fn lost_by(k: usize) -> CUresult {
    [CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, CUresult::CUDA_ERROR_LAUNCH_FAILED][k % 2]
}

fn assert_is_lost<T>(result: Result<T, Error>, code: CUresult) {
    let error = result.err().expect("a lost device does nothing");
    assert_eq!(error.source().unwrap().downcast_ref::<DriverError>().unwrap().0, code, "{error:?}");
}

// Nothing panics, not even where memory, events and the context are dropped, and no later step is taken for done.
#[test]
fn a_device_lost_at_any_call_of_a_step_refuses_everything_from_then_on() {
    const CALLS: usize = 10;
    for k in 1..=CALLS + 1 {
        emulated(&[(CALL, &k.to_string())], || {
            let device = Device::cuda_at(0).unwrap();
            let mut twins = twins(&device, 120);
            twins.step();
            twins.move_param(0, 1);
            fail("*", k, lost_by(k));
            let result = twins.gpu_step(ALL, |_| true);
            if k > CALLS {
                return assert!(result.is_ok() && !has_failed());
            }
            assert_is_lost(result, lost_by(k));
            for _ in 0..2 {
                assert_is_lost(twins.gpu_step(ALL, |_| true), lost_by(k));
                assert_is_lost(twins.gpu.state(0), lost_by(k));
                assert_is_lost(AdamW::new(&device, AdamWConfig::default(), [9]), lost_by(k));
            }
        });
    }
}

#[test]
fn a_device_lost_while_an_optimizer_is_made_refuses_the_next_one() {
    const CALLS: usize = 18;
    for k in 1..=CALLS + 1 {
        emulated(&[(CALL, &k.to_string())], || {
            let device = Device::cuda_at(0).unwrap();
            fail("*", k, lost_by(k));
            let made = AdamW::new(&device, AdamWConfig::default(), [9]);
            if k > CALLS {
                return assert!(made.is_ok() && !has_failed());
            }
            assert_is_lost(made, lost_by(k));
            assert_is_lost(AdamW::new(&device, AdamWConfig::default(), [9]), lost_by(k));
        });
    }
}
