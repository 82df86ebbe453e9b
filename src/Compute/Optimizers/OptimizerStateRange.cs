using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// The optimizer's state of the part of one parameter that this rank owns: what a checkpoint writes and reads (DESIGN D11). The tensors
/// are views that belong to the optimizer: copy from or into them, never dispose them.
/// </summary>
/// <param name="Parameter">The parameter.</param>
/// <param name="Range">Row-major elements of the parameter; the whole of it unless the optimizer is sharded.</param>
/// <param name="Master">[Range.Length] fp32 weights; for an fp32 model the weights themselves.</param>
/// <param name="ExpAvg">[Range.Length] fp32 first moment; with SGD the momentum.</param>
/// <param name="ExpAvgSq">[Range.Length] fp32 second moment; null with SGD.</param>
public sealed record OptimizerStateRange(Parameter Parameter, FlatRange Range, Tensor Master, Tensor ExpAvg, Tensor? ExpAvgSq);
