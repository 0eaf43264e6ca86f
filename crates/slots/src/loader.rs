//! Loading: tensors from a source into parameters, packed weights, sites and ledger.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Result, bail};
use ramekin_core::{Array, Category, DType, Ledger, Param, Rng, UserError, suggest};

use ramekin_tape::ops::{self, Reach};

use crate::{
    AttentionRule, LinearBase, LinearSite, ModuleSite, NormInfo, PackedWeight, Placement, Quantizer, Sites,
    block_of,
};

/// Shape and stored type of a tensor in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Stored number type.
    pub dtype: DType,
}

/// Where tensors come from.
pub trait WeightSource {
    /// What the source holds under this name; `None` if nothing.
    fn info(&self, name: &str) -> Option<WeightInfo>;
    /// The tensor, in its stored type.
    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array>;
    /// Every name, for messages.
    fn names(&self) -> Vec<String>;
    /// Whether the source knows only its names' shapes, or makes up what it is asked for.
    fn is_open(&self) -> bool {
        false
    }
    /// The weight as the quantizer in use has packed it already, where it has.
    fn packed(&self, _name: &str) -> Option<Arc<dyn PackedWeight>> {
        None
    }
    /// Where this is, for messages.
    fn label(&self) -> String;
}

/// Random initial weights: N(0, `std`²) for matrices, 1 for norms, 0 for biases.
pub struct RandomSource {
    /// The run's randomness.
    pub rng: Rng,
    /// `initializer_range`.
    pub std: f64,
}

impl WeightSource for RandomSource {
    fn info(&self, _name: &str) -> Option<WeightInfo> {
        None
    }

    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array> {
        Array::build::<f32>(dims, false, Category::Workspace, |out| {
            if dims.len() > 1 {
                self.rng.named("init", name).fill_normal(0, self.std, out);
            } else if name.ends_with(".weight") {
                out.fill(1.0);
            }
            Ok(())
        })
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn is_open(&self) -> bool {
        true
    }

    fn label(&self) -> String {
        "random initial weights".to_owned()
    }
}

/// Shapes without numbers, checked against another source's headers where there is one.
pub struct ShapeSource<'a>(
    /// The source whose headers are read.
    pub Option<&'a dyn WeightSource>,
);

impl WeightSource for ShapeSource<'_> {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.0.and_then(|s| s.info(name))
    }

    fn read(&mut self, _name: &str, dims: &[usize]) -> Result<Array> {
        Array::shape_only(dims, DType::F32, Category::Workspace)
    }

    fn names(&self) -> Vec<String> {
        self.0.map(WeightSource::names).unwrap_or_default()
    }

    fn is_open(&self) -> bool {
        self.0.is_none_or(WeightSource::is_open)
    }

    fn label(&self) -> String {
        self.0.map_or_else(|| "shapes".to_owned(), WeightSource::label)
    }
}

/// How dense tensors are held and which linears are packed.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Type of dense matrices (norms and biases are f32).
    pub dtype: DType,
    /// Whether products are to be in bf16, where the machine has such: also of matrices that are held in f32 to train.
    pub in_bf16: bool,
    /// Packs the linears it converts.
    pub quantizer: Option<&'a dyn Quantizer>,
    /// Takes the blocks' weights, where they do not all stay in memory.
    pub placement: Option<&'a dyn Placement>,
    /// Decides what tokens see, where that is not what the config says.
    pub attention: Option<&'a dyn AttentionRule>,
}

impl Default for LoadOptions<'_> {
    /// Everything dense, in f32 and in memory, as the config says.
    fn default() -> Self {
        LoadOptions { dtype: DType::F32, in_bf16: false, quantizer: None, placement: None, attention: None }
    }
}

/// Builds sites and ledger while a model family asks for its tensors by name.
pub struct Loader<'a> {
    source: &'a mut dyn WeightSource,
    options: LoadOptions<'a>,
    ledger: Ledger,
    sites: Sites,
    used: HashSet<String>,
    packed: usize,
}

impl<'a> Loader<'a> {
    /// A loader from this source.
    pub fn new(source: &'a mut dyn WeightSource, options: LoadOptions<'a>) -> Self {
        let mut sites = Sites::default();
        if options.in_bf16 {
            sites.multiply_in_bf16();
        }
        Loader { source, options, ledger: Ledger::default(), sites, used: HashSet::new(), packed: 0 }
    }

    /// Whether the source holds this tensor (or makes up any).
    pub fn has(&self, name: &str) -> bool {
        self.source.is_open() || self.source.info(name).is_some()
    }

    /// What each block's tokens see, from what the config says.
    pub fn reach(&self, blocks: &mut [Reach]) {
        if let Some(rule) = self.options.attention {
            blocks.iter_mut().enumerate().for_each(|(i, own)| *own = rule.reach(i, *own));
        }
    }

    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array> {
        match self.source.info(name) {
            Some(info) if info.dims != dims => {
                return Err(UserError::new(format!(
                    "the tensor `{name}` is {:?} in the file; config.json makes it {dims:?}",
                    info.dims
                ))
                .in_file(self.source.label())
                .into());
            }
            None if !self.source.is_open() => {
                let names = self.source.names();
                let near = suggest(name, names.iter().map(String::as_str));
                let mut error =
                    UserError::new(format!("the tensor `{name}` is missing")).in_file(self.source.label());
                if let Some(near) = near {
                    error = error.help(format!("the nearest name there is `{near}`"));
                }
                return Err(error.into());
            }
            _ => {}
        }
        self.used.insert(name.to_owned());
        let array = self.source.read(name, dims)?;
        check_finite(name, &array, &self.source.label())?;
        Ok(array)
    }

    fn add(&mut self, name: &str, array: Array) -> Result<()> {
        let param = Param::new(name, array);
        self.ledger.add(&param, Ledger::MODEL)?;
        if let (Some(placement), Some(block)) = (self.options.placement, block_of(name)) {
            placement.adopt_param(block, &param)?;
        }
        self.sites.add_param(param);
        Ok(())
    }

    /// A vector: norm weight or bias, held in f32.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<()> {
        self.tensor(name, &[len])
    }

    /// A norm with its weight `PATH.weight` and, perhaps, `PATH.bias`. `readers` are the linears that have
    /// its output as their only input, none where something else reads it too.
    pub fn norm(&mut self, path: &str, len: usize, bias: bool, readers: &[&str]) -> Result<()> {
        let weight = format!("{path}.weight");
        self.vector(&weight, len)?;
        let bias = bias.then(|| format!("{path}.bias"));
        if let Some(bias) = &bias {
            self.vector(bias, len)?;
        }
        let readers = readers.iter().map(|r| (*r).to_owned()).collect();
        self.sites.add_module(ModuleSite::new(path, len, Some(NormInfo { weight, bias, readers })));
        Ok(())
    }

    /// A module whose output has rows of this width: what [`crate::Forward::module`] runs.
    pub fn module(&mut self, path: &str, width: usize) {
        self.sites.add_module(ModuleSite::new(path, width, None));
    }

    /// A table `[rows, width]`, such as an embedding, held in the options' type.
    pub fn table(&mut self, name: &str, rows: usize, width: usize) -> Result<()> {
        let array = self.read(name, &[rows, width])?.to_dtype(self.options.dtype, Category::Workspace)?;
        self.add(name, array)
    }

    /// A tensor of any shape that is neither a linear's nor a table, held in f32.
    pub fn tensor(&mut self, name: &str, dims: &[usize]) -> Result<()> {
        let array = self.read(name, dims)?.to_dtype(DType::F32, Category::Workspace)?;
        self.add(name, array)
    }

    /// Whether the model's products are to be in bf16.
    pub fn is_bf16(&self) -> bool {
        self.sites.in_bf16()
    }

    /// A linear with its weight `PATH.weight` `[outputs, inputs]` and, perhaps, `PATH.bias`.
    pub fn linear(
        &mut self,
        path: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
        is_head: bool,
    ) -> Result<()> {
        let name = format!("{path}.weight");
        let quantizer = self.options.quantizer;
        let quantizer = if is_head { quantizer.and_then(|q| Some(q.for_head()?.0)) } else { quantizer };
        let quantizer = quantizer.filter(|q| q.converts(path));
        let base = if let Some(quantizer) = quantizer {
            let packed = self.pack(quantizer, &name, (outputs, inputs))?;
            self.ledger.add_packed(&name, &[outputs, inputs], quantizer.name(), packed.bytes())?;
            self.packed += 1;
            LinearBase::Packed(match (self.options.placement, block_of(path)) {
                (Some(placement), Some(block)) => placement.adopt_packed(block, path, packed)?,
                _ => packed,
            })
        } else {
            self.table(&name, outputs, inputs)?;
            LinearBase::Dense(name)
        };
        let bias = if bias {
            let name = format!("{path}.bias");
            self.vector(&name, outputs)?;
            Some(name)
        } else {
            None
        };
        self.sites.add_linear(LinearSite::new(path, (outputs, inputs), is_head, base, bias));
        Ok(())
    }

    fn pack(
        &mut self,
        quantizer: &dyn Quantizer,
        name: &str,
        shape: (usize, usize),
    ) -> Result<Arc<dyn PackedWeight>> {
        if let Some(packed) = self.source.packed(name) {
            self.used.insert(name.to_owned());
            return Ok(packed);
        }
        let weight = self.read(name, &[shape.0, shape.1])?;
        if weight.is_shape_only() {
            drop(weight);
            return quantizer.pack_shape(name, shape);
        }
        // A copy only of what is not in f32: a head can be a good part of a model.
        let packed = if let Ok(numbers) = weight.view::<f32>() {
            quantizer.pack(name, &numbers, shape)?
        } else {
            let numbers = weight.to_f32()?;
            drop(weight);
            quantizer.pack(name, &numbers, shape)?
        };
        // A bf16 model multiplies in bf16, packed or not.
        let how = ops::Rounding { bf16: self.options.in_bf16, int8: quantizer.rounds_activations() };
        Ok(ops::Rounds::of(packed, how))
    }

    /// A head that uses a table which is loaded already.
    ///
    /// # Errors
    /// If a quantizer is to pack the head.
    pub fn tied_head(&mut self, path: &str, table: &str, outputs: usize, inputs: usize) -> Result<()> {
        if let Some((_, setting)) = self.options.quantizer.and_then(|q| q.for_head()) {
            let why =
                format!("is set, but `{path}` is the embedding's table in this model, which stays as it is");
            return Err(ramekin_core::BadSetting::new(setting, why).into());
        }
        let name = format!("{path}.weight");
        self.used.insert(name);
        self.sites.add_linear(LinearSite::new(
            path,
            (outputs, inputs),
            true,
            LinearBase::Dense(table.to_owned()),
            None,
        ));
        Ok(())
    }

    /// Ends loading: the ledger, the sites and the names in the source that nobody asked for.
    ///
    /// # Errors
    /// If a quantizer found nothing to convert, or a name it was told to leave out is not there.
    pub fn finish(self) -> Result<(Ledger, Sites, Vec<String>)> {
        if let Some(quantizer) = self.options.quantizer {
            if self.packed == 0 {
                bail!("the quantizer `{}` found no linear to convert", quantizer.name());
            }
            for name in quantizer.module_names_left_out() {
                if !self.sites.linears().iter().any(|l| ramekin_core::pattern::ends_in(&l.path, name)) {
                    return Err(ramekin_core::BadSetting::new(
                        "modules_to_not_convert",
                        format!("names `{name}`, which matches no linear"),
                    )
                    .into());
                }
            }
        }
        let unused = self.source.names().into_iter().filter(|n| !self.used.contains(n)).collect();
        Ok((self.ledger, self.sites, unused))
    }
}

fn check_finite(name: &str, array: &Array, label: &str) -> Result<()> {
    if array.is_shape_only() {
        return Ok(());
    }
    let finite = match array.dtype() {
        DType::F32 => ramekin_kernels::elementwise::all_finite(&array.view::<f32>()?),
        DType::F64 => ramekin_kernels::elementwise::all_finite(&array.view::<f64>()?),
        _ => ramekin_kernels::elementwise::all_finite(&array.to_f32()?),
    };
    if !finite {
        return Err(UserError::new(format!("the tensor `{name}` holds numbers that are not finite"))
            .in_file(label)
            .help("the file is damaged or the training that wrote it diverged")
            .into());
    }
    Ok(())
}
