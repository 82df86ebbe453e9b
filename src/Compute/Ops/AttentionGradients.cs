using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Gradients of attention's inputs: query [T, N, D], key and value [T, G, D], in whatever strides the kernel left them.</summary>
public readonly record struct AttentionGradients(Tensor Query, Tensor Key, Tensor Value);
