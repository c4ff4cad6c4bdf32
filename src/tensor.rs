//! What the user hands over: a parameter and its gradient, whatever owns them, their types erased.

use crate::rounding::{bf16_to_f32, f16_to_f32, f32_to_bf16_rn, f32_to_f16_rn, low_half};
use crate::table::dtypes;
use half::{bf16, f16};
use std::fmt;
use std::marker::PhantomData;

#[cfg(feature = "cuda")]
pub(crate) use crate::cuda_view::{GradView, Located, View, ViewMut};
#[cfg(feature = "cuda")]
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};

#[cfg(not(feature = "cuda"))]
pub(crate) use without_cuda::{GradView, Located, ViewMut};

/// The views of a build that has no GPU: lifetimes, and no values.
#[cfg(not(feature = "cuda"))]
mod without_cuda {
    pub(crate) trait Located<'a> {}
    pub(crate) type GradView<'a> = &'a [u8];
    pub(crate) type ViewMut<'a> = &'a mut [u8];
    impl<'a> Located<'a> for GradView<'a> {}
    impl<'a> Located<'a> for ViewMut<'a> {}
}

/// The type of a parameter's or a gradient's elements.
///
/// ```
/// use fused_adamw::Dtype;
/// assert_eq!((Dtype::BF16.size(), Dtype::BF16.to_string()), (2, "bf16".into()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    BF16,
}

impl Dtype {
    /// Bytes of an element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Whether its parameters have an f32 master.
    pub(crate) const fn is_narrow(self) -> bool {
        self.size() < Self::F32.size()
    }

    pub(crate) const fn of_code(code: u8) -> Self {
        match code {
            dtypes::F32 => Self::F32,
            dtypes::F16 => Self::F16,
            _ => Self::BF16,
        }
    }

    /// As the tables write it.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::F32 => dtypes::F32,
            Self::F16 => dtypes::F16,
            Self::BF16 => dtypes::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

pub(crate) mod sealed {
    /// Widening is exact; narrowing rounds to the nearest, ties to even.
    pub trait Sealed: Copy + Send + Sync + 'static {
        fn widen(self) -> f32;
        fn narrow(x: f32) -> Self;

        /// Whether it is narrower than the f32 that a step computes with.
        const NARROW: bool;
        /// The f32 that a step updates, and the copies it leaves of them: of an f32 parameter itself and none, of a
        /// 16-bit parameter its master and itself.
        fn weights<'a>(param: &'a mut [Self], master: &'a mut [f32]) -> (&'a mut [f32], &'a mut [Self]);

        #[cfg(feature = "cuda")]
        fn view(view: super::CudaView<'_, Self>) -> super::View<'_>;
        #[cfg(feature = "cuda")]
        fn view_mut(view: super::CudaViewMut<'_, Self>) -> super::ViewMut<'_>;
    }
}

/// The element types of parameters and gradients: `f32`, [`half::f16`], [`half::bf16`]. Sealed.
///
/// ```
/// use fused_adamw::{Dtype, Float};
/// assert_eq!(<half::bf16 as Float>::DTYPE, Dtype::BF16);
/// ```
pub trait Float: sealed::Sealed {
    /// Its name at run time.
    const DTYPE: Dtype;
}

macro_rules! float {
    ($type:ty, $dtype:ident, |$x:ident| $widen:expr, $narrow:expr, |$param:ident, $master:ident| $weights:expr) => {
        impl Float for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }

        #[allow(clippy::inline_always, reason = "a call would leave the caller's target features")]
        impl sealed::Sealed for $type {
            #[inline(always)]
            fn widen(self) -> f32 {
                let $x = self;
                $widen
            }

            #[inline(always)]
            fn narrow($x: f32) -> Self {
                $narrow
            }

            const NARROW: bool = <$type as Float>::DTYPE.is_narrow();

            #[inline(always)]
            fn weights<'a>($param: &'a mut [Self], $master: &'a mut [f32]) -> (&'a mut [f32], &'a mut [Self]) {
                $weights
            }

            #[cfg(feature = "cuda")]
            fn view(view: CudaView<'_, Self>) -> View<'_> {
                View::$dtype(view)
            }

            #[cfg(feature = "cuda")]
            fn view_mut(view: CudaViewMut<'_, Self>) -> ViewMut<'_> {
                ViewMut::$dtype(view)
            }
        }
    };
}

float!(f32, F32, |x| x, x, |param, _master| (param, &mut []));
float!(f16, F16, |x| f16_to_f32(x.to_bits().into()), Self::from_bits(low_half(f32_to_f16_rn(x))), |p, master| (
    master, p
));
float!(bf16, BF16, |x| bf16_to_f32(x.to_bits().into()), Self::from_bits(low_half(f32_to_bf16_rn(x))), |p, master| (
    master, p
));

/// A run of elements somewhere in memory. `V` is [`GradView`] for a gradient, [`ViewMut`] for a parameter.
#[derive(Debug)]
pub(crate) struct Elements<V> {
    pub(crate) place: Place<V>,
    pub(crate) dtype: Dtype,
    pub(crate) len: usize,
    /// Whether a step may write to it.
    pub(crate) writable: bool,
}

/// Where they lie: borrowed as `V` is, but for a raw address.
#[derive(Debug)]
pub(crate) enum Place<V> {
    Host(u64, PhantomData<V>),
    Raw(u64),
    #[cfg(feature = "cuda")]
    Cuda(V),
}

/// A parameter: `&mut` of a slice, array or `Vec` on the CPU, of a `CudaSlice` or a `CudaViewMut` on a GPU; made by
/// [`Into`].
///
/// ```
/// let mut weights = vec![half::bf16::ONE; 8];
/// let param = fused_adamw::Param::from(&mut weights);
/// ```
#[derive(Debug)]
pub struct Param<'a>(pub(crate) Elements<ViewMut<'a>>);

/// A gradient, or none: `&` of a slice, array or `Vec` on the CPU, of a `CudaSlice` or a `CudaView` on a GPU, or an
/// `Option` of one of them; made by [`Into`]. Or `&mut` of them (a `CudaViewMut`), which
/// [`Control::zero_grad`](crate::Control::zero_grad) asks for.
///
/// ```
/// let grad = fused_adamw::Grad::from(&[0.5_f32; 8]);
/// let none = fused_adamw::Grad::from(None::<&[f32]>);
/// let mut zeroed = [0.5_f32; 8];
/// let zeroed = fused_adamw::Grad::from(&mut zeroed);
/// ```
#[derive(Debug)]
pub struct Grad<'a>(pub(crate) Option<Elements<GradView<'a>>>);

impl<'a, T: Float> From<&'a mut [T]> for Param<'a> {
    fn from(slice: &'a mut [T]) -> Self {
        let place = Place::Host(slice.as_mut_ptr().expose_provenance() as u64, PhantomData);
        Self(Elements { place, dtype: T::DTYPE, len: slice.len(), writable: true })
    }
}

impl<'a, T: Float> From<&'a mut [T]> for Grad<'a> {
    fn from(slice: &'a mut [T]) -> Self {
        let place = Place::Host(slice.as_mut_ptr().expose_provenance() as u64, PhantomData);
        Self(Some(Elements { place, dtype: T::DTYPE, len: slice.len(), writable: true }))
    }
}

impl<'a, T: Float> From<&'a [T]> for Grad<'a> {
    fn from(slice: &'a [T]) -> Self {
        let place = Place::Host(slice.as_ptr().expose_provenance() as u64, PhantomData);
        Self(Some(Elements { place, dtype: T::DTYPE, len: slice.len(), writable: false }))
    }
}

impl<'a, T: Float> From<&'a mut Vec<T>> for Param<'a> {
    fn from(vec: &'a mut Vec<T>) -> Self {
        vec.as_mut_slice().into()
    }
}

impl<'a, T: Float> From<&'a mut Vec<T>> for Grad<'a> {
    fn from(vec: &'a mut Vec<T>) -> Self {
        vec.as_mut_slice().into()
    }
}

impl<'a, T: Float> From<&'a Vec<T>> for Grad<'a> {
    fn from(vec: &'a Vec<T>) -> Self {
        vec.as_slice().into()
    }
}

impl<'a, T: Float, const N: usize> From<&'a mut [T; N]> for Param<'a> {
    fn from(array: &'a mut [T; N]) -> Self {
        array.as_mut_slice().into()
    }
}

impl<'a, T: Float, const N: usize> From<&'a mut [T; N]> for Grad<'a> {
    fn from(array: &'a mut [T; N]) -> Self {
        array.as_mut_slice().into()
    }
}

impl<'a, T: Float, const N: usize> From<&'a [T; N]> for Grad<'a> {
    fn from(array: &'a [T; N]) -> Self {
        array.as_slice().into()
    }
}

#[cfg(feature = "cuda")]
impl<'a, T: Float> From<CudaViewMut<'a, T>> for Param<'a> {
    fn from(view: CudaViewMut<'a, T>) -> Self {
        let len = view.len();
        Self(Elements { place: Place::Cuda(T::view_mut(view)), dtype: T::DTYPE, len, writable: true })
    }
}

#[cfg(feature = "cuda")]
impl<'a, T: Float> From<CudaViewMut<'a, T>> for Grad<'a> {
    fn from(view: CudaViewMut<'a, T>) -> Self {
        let len = view.len();
        let place = Place::Cuda(GradView::Unique(T::view_mut(view)));
        Self(Some(Elements { place, dtype: T::DTYPE, len, writable: true }))
    }
}

#[cfg(feature = "cuda")]
impl<'a, T: Float> From<CudaView<'a, T>> for Grad<'a> {
    fn from(view: CudaView<'a, T>) -> Self {
        let len = view.len();
        let place = Place::Cuda(GradView::Shared(T::view(view)));
        Self(Some(Elements { place, dtype: T::DTYPE, len, writable: false }))
    }
}

#[cfg(feature = "cuda")]
impl<'a, T: Float> From<&'a mut CudaSlice<T>> for Param<'a> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        slice.as_view_mut().into()
    }
}

#[cfg(feature = "cuda")]
impl<'a, T: Float> From<&'a mut CudaSlice<T>> for Grad<'a> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        slice.as_view_mut().into()
    }
}

#[cfg(feature = "cuda")]
impl<'a, T: Float> From<&'a CudaSlice<T>> for Grad<'a> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        slice.as_view().into()
    }
}

impl<'a, G: Into<Grad<'a>>> From<Option<G>> for Grad<'a> {
    fn from(grad: Option<G>) -> Self {
        grad.map_or(Self(None), Into::into)
    }
}

/// A parameter and its gradient, borrowed until the step that takes them returns.
///
/// `(parameter, gradient)` and `(parameter, Option<gradient>)` convert into one, so that
/// `params.iter_mut().zip(&grads)` is a list of pairs. The two may differ in dtype.
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Device, Pair};
/// use half::bf16;
/// let (mut w, gw) = (vec![bf16::ONE; 6], vec![0.25_f32; 6]);
/// let (mut b, gb) = ([1.0_f32; 2], [0.5_f32; 2]);
/// let mut frozen = [1.0_f32; 3];
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), [6, 2, 3])?;
/// opt.step([Pair::new(&mut w, &gw), Pair::new(&mut b, &gb), Pair::without_grad(&mut frozen)])?;
/// assert!(b[0] < 1.0 && frozen == [1.0; 3]);
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Debug)]
pub struct Pair<'a> {
    pub(crate) param: Param<'a>,
    pub(crate) grad: Grad<'a>,
}

impl<'a> Pair<'a> {
    /// A parameter and its gradient.
    ///
    /// ```
    /// let (mut p, g) = ([1.0_f32; 3], [0.1_f32; 3]);
    /// let pair = fused_adamw::Pair::new(&mut p, &g);
    /// ```
    pub fn new(param: impl Into<Param<'a>>, grad: impl Into<Grad<'a>>) -> Self {
        Self { param: param.into(), grad: grad.into() }
    }

    /// A parameter that has no gradient in this step: the tensor is left alone, and its own step count does not
    /// move, as in PyTorch where `grad` is `None`.
    ///
    /// ```
    /// let mut frozen = [1.0_f32; 3];
    /// let pair = fused_adamw::Pair::without_grad(&mut frozen);
    /// ```
    pub fn without_grad(param: impl Into<Param<'a>>) -> Self {
        Self { param: param.into(), grad: Grad(None) }
    }
}

impl<'a, P: Into<Param<'a>>, G: Into<Grad<'a>>> From<(P, G)> for Pair<'a> {
    fn from((param, grad): (P, G)) -> Self {
        Self::new(param, grad)
    }
}
