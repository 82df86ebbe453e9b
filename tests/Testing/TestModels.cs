using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.Transformer;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>Small models and gradient buffers for tests.</summary>
public static class TestModels
{
    /// <summary>Attention by the reference kernel.</summary>
    public static AttentionOptions Unfused { get; } = new() { Backend = AttentionBackend.Unfused, SoftmaxInFp32 = true, QueryKeyLayerScaling = false };

    /// <summary>Attention by the fastest kernel.</summary>
    public static AttentionOptions Auto { get; } = Unfused with { Backend = AttentionBackend.Auto };

    /// <summary>CPU options without recompute.</summary>
    public static ModelOptions Options(ScalarType dtype) => new()
    {
        Dtype = dtype, Device = CPU, Seed = 1234, Recompute = RecomputeOptions.Off, Attention = Auto, Moe = MoeOptions.Plain,
    };

    /// <summary>A small architecture: 2 layers, grouped heads.</summary>
    public static ModelConfig Config { get; } = new()
    {
        Architecture = "Qwen3ForCausalLM", ModelType = "qwen3", NumLayers = 2, HiddenSize = 24, FfnHiddenSize = 40, NumAttentionHeads = 4, NumQueryGroups = 2,
        KvChannels = 8, VocabSize = 48, MaxPositionEmbeddings = 64, NormEpsilon = 1e-6, TieWordEmbeddings = false, AddQkvBias = false, QkLayerNorm = false,
        Rotary = new RotaryConfig { Base = 10_000 },
    };

    /// <summary>The whole model on one rank, uninitialised.</summary>
    public static GptModel Whole(ModelConfig config, ModelOptions options) => new(config, options, ParallelState.SingleRank(), StageLayout.Whole(config));

    /// <summary>
    /// Gives each parameter a zeroed gradient of its own, fp64 for fp64 parameters (a <see cref="GradientBuffer"/> is fp32 always). The
    /// result frees them.
    /// </summary>
    public static IDisposable AttachGradients(IReadOnlyList<Parameter> parameters) => new Gradients(parameters);

    private sealed class Gradients : IDisposable
    {
        private readonly List<Tensor> tensors = [];

        public Gradients(IReadOnlyList<Parameter> parameters)
        {
            foreach (var parameter in parameters)
            {
                var dtype = parameter.Data.dtype == ScalarType.Float64 ? ScalarType.Float64 : ScalarType.Float32;
                tensors.Add(zeros(parameter.Shape, dtype, parameter.Data.device).DetachFromDisposeScope());
                parameter.GradientSlot = new GradientSlot(0, parameter.Shape, tensors[^1]);
            }
        }

        public void Dispose()
        {
            foreach (var tensor in tensors) tensor.Dispose();
        }
    }
}
