//! Where a step runs.

use crate::arena::Arena;
use crate::error::{Result, number_of};
use crate::pool;
use crate::simd::Simd;
use crate::tensor::{Located, Place};
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::{Error, cuda_device::CudaDevice, tuning::Tuning};
#[cfg(feature = "cuda")]
use cudarc::driver::CudaStream;

/// Where an optimizer keeps its state and runs its steps: a CUDA stream of a GPU, or the CPU. The bits are the same.
///
/// Cheap to clone; its [`Display`](fmt::Display) says which device it is, and why.
///
/// ```
/// use fused_adamw::Device;
/// let device = Device::best();
/// println!("{device}"); // e.g. CPU (AVX2, 2 threads): no NVIDIA driver: libcuda.so.1 cannot be loaded
/// assert!(Device::cpu().to_string().starts_with("CPU"));
/// ```
#[derive(Clone, Debug)]
pub struct Device(pub(crate) Kind);

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// With the reason why it is not a GPU, if one was looked for.
    Cpu(Simd, Option<Arc<str>>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaDevice>),
}

impl Device {
    /// The CPU, with the best instruction set it has, on the threads of the rayon pool in which a step is called; outside
    /// of any, on those of rayon's global pool.
    ///
    /// A `fork` copies no threads, and rayon's pools never end in the child. Outside of any pool a step then runs on the
    /// caller's thread alone, with the same bits, as it does where the global pool's threads cannot be made. (Only a pool
    /// that the application made before the fork, with no step before it, is found out on Linux alone.) A pool that the
    /// child makes for itself is used.
    ///
    /// ```
    /// # use fused_adamw::{AdamW, AdamWConfig, Device};
    /// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [2])?;
    /// let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?; // one's own threads
    /// pool.install(|| opt.step([(&mut [0.0_f32; 2], &[1.0_f32; 2])]))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn cpu() -> Self {
        Self(Kind::Cpu(Simd::best(), None))
    }

    /// The CPU with an instruction set of choice: for tests and measurements, the bits do not differ.
    ///
    /// ```
    /// use fused_adamw::{Device, Simd};
    /// println!("{}", Device::cpu_with(Simd::Portable)?); // CPU (portable code, 2 threads)
    /// # Ok::<(), fused_adamw::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Simd`](crate::Error::Simd) where this processor lacks it.
    pub fn cpu_with(simd: Simd) -> Result<Self> {
        Ok(Self(Kind::Cpu(simd.check()?, None)))
    }

    /// A GPU if one works (`Device::cuda_at(0)`), else the CPU. Its `Display` says
    /// which it is and why.
    ///
    /// ```
    /// let device = fused_adamw::Device::best();
    /// println!("{device}");
    /// ```
    #[must_use]
    pub fn best() -> Self {
        #[cfg(feature = "cuda")]
        let why = match Self::cuda_at(0) {
            Ok(device) => return device,
            Err(error) => with_sources(&error),
        };
        #[cfg(not(feature = "cuda"))]
        let why = "built without the feature `cuda`";
        Self(Kind::Cpu(Simd::best(), Some(why.into())))
    }

    /// The GPU of `stream`; everything the optimizer does is enqueued there, in order.
    ///
    /// Take the stream that the gradients are made on: then nothing has to wait. With several streams cudarc's event
    /// tracking makes a step wait for the writers of its tensors, at a cost of about ten driver calls a tensor and step
    /// ([`CudaContext::disable_event_tracking`](cudarc::driver::CudaContext::disable_event_tracking) if you order
    /// the streams yourself).
    ///
    /// cudarc keeps one event for all readers of a slice, which is that of the last reader. A gradient that two streams
    /// read, and that is dropped or written before both have finished, is a race: another reader's kernel may still run.
    /// Let one of the streams wait for the other before ([`CudaStream::join`](cudarc::driver::CudaStream::join)).
    ///
    /// A per-thread default stream, which candle takes unless it is given one, is another stream in every
    /// thread: call the step in the thread that makes the gradients.
    ///
    /// ```no_run
    /// use fused_adamw::{Device, cudarc::driver::CudaContext};
    /// let stream = CudaContext::new(0)?.default_stream();
    /// let device = Device::cuda(&stream)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OldDriver`](crate::Error::OldDriver) for a driver without a function that this crate calls,
    /// [`Error::PtxTooNew`](crate::Error::PtxTooNew) for one that is older than the kernels,
    /// [`Error::Driver`](crate::Error::Driver) if it does not load them.
    #[cfg(feature = "cuda")]
    pub fn cuda(stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self(Kind::Cuda(Arc::new(CudaDevice::new(stream, Tuning::default())?))))
    }

    /// The GPU of that number, in its primary context, on its default stream: [`Device::stream`]. Never panics,
    /// whatever is missing.
    ///
    /// Its [`CudaContext`](cudarc::driver::CudaContext) is one of its own. Tensors of another one of the same GPU are taken
    /// while that one has made no stream; afterwards the optimizer has to be made by [`Device::cuda`] on a stream of it.
    ///
    /// ```
    /// match fused_adamw::Device::cuda_at(0) {
    ///     Ok(device) => println!("{device}"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoDriver`](crate::Error::NoDriver), [`Error::NoDevice`](crate::Error::NoDevice), and those of
    /// [`Device::cuda`].
    #[cfg(feature = "cuda")]
    pub fn cuda_at(ordinal: usize) -> Result<Self> {
        Self::cuda(&crate::cuda_driver::stream_of(ordinal)?)
    }

    /// As [`Device::cuda`], otherwise tuned.
    ///
    /// # Safety
    /// The kernels do what those of this build do, in memory too; those of a fixed grid are given one, and others none.
    ///
    /// # Errors
    /// As for [`Device::cuda`].
    #[cfg(feature = "cuda")]
    #[doc(hidden)]
    pub unsafe fn cuda_tuned(stream: &Arc<CudaStream>, tuning: Tuning<'_>) -> Result<Self> {
        Ok(Self(Kind::Cuda(Arc::new(CudaDevice::new(stream, tuning)?))))
    }

    /// The stream of a GPU; `None` for the CPU.
    ///
    /// ```
    /// assert!(fused_adamw::Device::cpu().stream().is_none());
    /// ```
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn stream(&self) -> Option<&Arc<CudaStream>> {
        match &self.0 {
            Kind::Cpu(..) => None,
            Kind::Cuda(device) => Some(&device.stream),
        }
    }

    /// Zeros of the optimizer's own.
    pub(crate) fn alloc(&self, len: usize) -> Result<Arena> {
        match &self.0 {
            Kind::Cpu(..) => Arena::host(len),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => device.alloc(len),
        }
    }

    /// True if the stream is being captured. An error if the capture lacks a requirement: cudarc would wait for events
    /// from outside of the capture, the graph's memory might go, or the step's numbers would be constants.
    pub(crate) fn check_capture(&self, is_allowed: bool, has_control: bool) -> Result<bool> {
        let _ = (is_allowed, has_control); // all the same to a CPU
        match &self.0 {
            Kind::Cpu(..) => Ok(false),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => match crate::cuda_capture::is_capturing(&device.stream)? {
                true if device.records_events() => Err(Error::CaptureWithEvents),
                true if !is_allowed => Err(Error::CaptureNotAllowed),
                true if !has_control => Err(Error::CaptureWithoutControl),
                is_capturing => Ok(is_capturing),
            },
        }
    }

    /// Drops the values that captures have delayed and that are over.
    pub(crate) fn drop_left(&self) {
        #[cfg(feature = "cuda")]
        if let Kind::Cuda(_) = &self.0 {
            crate::cuda_capture::drop_left();
        }
    }

    /// Drops `what` when the stream is no longer captured.
    pub(crate) fn leave(&self, what: impl std::any::Any + Send) {
        match &self.0 {
            Kind::Cpu(..) => drop(what),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => crate::cuda_capture::leave(&device.stream, what),
        }
    }

    /// Where its memory is, in an error's words.
    pub(crate) fn describe(&self) -> String {
        match &self.0 {
            Kind::Cpu(..) => HOST.into(),
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => crate::cuda_device::describe(device.stream.context()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Cpu(simd, why) => {
                write!(f, "CPU ({simd}, {})", number_of(pool::threads() as u64, "thread"))?;
                why.iter().try_for_each(|why| write!(f, ": {why}"))
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda(device) => device.fmt(f),
        }
    }
}

/// An error with its causes in one line.
#[cfg(feature = "cuda")]
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// The CPU's memory in an error's words.
pub(crate) const HOST: &str = "host memory";

#[cfg(feature = "cuda")]
const TO_THE_GPU: &str = "allocate it on the optimizer's `device.stream()`, or make the optimizer on `Device::cpu()`";
#[cfg(feature = "cuda")]
const ON_THEIR_STREAM: &str = "make the optimizer on its stream, `Device::cuda(&stream)`";
#[cfg(feature = "cuda")]
const IN_ONE_CONTEXT: &str =
    "make the optimizer on its stream, `Device::cuda(&stream)`, or allocate it on the optimizer's `device.stream()`";

/// Another place than the optimizer's device, and what a user can do about it.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(crate) place: String,
    pub(crate) remedy: &'static str,
}

/// What keeps the tensors of a step from being used too early by other streams: dropped after the launch.
#[derive(Debug, Default)]
pub(crate) struct Guards<'a> {
    #[cfg(feature = "cuda")]
    held: Vec<cudarc::driver::SyncOnDrop<'a>>,
    /// Whether there are events to record: with one stream there are none, and nothing is held.
    #[cfg(feature = "cuda")]
    recorded: bool,
    /// Other contexts whose tensors were taken.
    #[cfg(feature = "cuda")]
    admitted: Vec<Arc<cudarc::driver::CudaContext>>,
    #[cfg(not(feature = "cuda"))]
    held: std::marker::PhantomData<&'a ()>,
}

#[cfg(feature = "cuda")]
fn emptied<T>(mut list: Vec<T>) -> Vec<T> {
    list.clear();
    list
}

impl<'a> Guards<'a> {
    /// The address on `device`, or where the elements lie instead.
    #[inline]
    pub(crate) fn address<V: Located<'a>>(&mut self, device: &'a Device, place: Place<V>) -> Result<u64, Elsewhere> {
        match (&device.0, place) {
            (_, Place::Raw(address)) | (Kind::Cpu(..), Place::Host(address, _)) => Ok(address),
            #[cfg(feature = "cuda")]
            (Kind::Cuda(cuda), Place::Cuda(view)) => {
                if !cuda.has_context(view.stream().context()) {
                    self.admit(cuda, view.stream())?;
                }
                let (address, guard) = view.address(&cuda.stream);
                if self.recorded {
                    self.held.push(guard);
                } else {
                    std::mem::forget(guard); // two references
                }
                Ok(address)
            }
            #[cfg(feature = "cuda")]
            (Kind::Cuda(_), Place::Host(..)) => Err(Elsewhere { place: HOST.into(), remedy: TO_THE_GPU }),
            #[cfg(feature = "cuda")]
            (Kind::Cpu(..), Place::Cuda(view)) => {
                let place = crate::cuda_device::describe(view.stream().context());
                Err(Elsewhere { place, remedy: ON_THEIR_STREAM })
            }
        }
    }

    /// A tensor of another context object, whose default stream is ours: NOTE [contexts] in `cuda_device.rs`.
    #[cfg(feature = "cuda")]
    #[cold]
    fn admit(&mut self, device: &crate::cuda_device::CudaDevice, stream: &Arc<CudaStream>) -> Result<(), Elsewhere> {
        let context = stream.context();
        if !device.shares_default_stream(stream) {
            return Err(Elsewhere { place: crate::cuda_device::describe(context), remedy: IN_ONE_CONTEXT });
        }
        if !self.admitted.iter().any(|admitted| Arc::ptr_eq(admitted, context)) {
            self.admitted.push(context.clone());
        }
        Ok(())
    }

    /// True if taking an address makes the stream wait for events.
    pub(crate) fn waits(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.recorded;
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Records the use of the tensors, after the launch. Leaves the memory.
    pub(crate) fn finish(mut self, device: &Device) -> Result<Guards<'static>> {
        #[cfg(feature = "cuda")]
        if let Kind::Cuda(device) = &device.0 {
            device.record(&mut self.held, self.recorded, &self.admitted)?;
        }
        let _ = &mut self.held;
        Ok(self.next(device))
    }

    /// None, in the memory of those that were: for the next step.
    pub(crate) fn next<'b>(self, device: &Device) -> Guards<'b> {
        let _ = device;
        #[cfg(feature = "cuda")]
        let admitted = emptied(self.admitted);
        Guards {
            #[cfg(feature = "cuda")]
            held: self.held.into_iter().map_while(|_| None).collect(), // reuses it: `std` collects in place
            #[cfg(feature = "cuda")]
            recorded: matches!(&device.0, Kind::Cuda(device) if device.records_events()),
            #[cfg(feature = "cuda")]
            admitted,
            #[cfg(not(feature = "cuda"))]
            held: std::marker::PhantomData,
        }
    }
}
