using Megatron.Compute.Configuration;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;

namespace Megatron.Compute.Transformer;

/// <summary>Puts the parts of a mixture-of-experts layer together.</summary>
public static class MoeBlock
{
    /// <summary>A layer with its parameters, uninitialised.</summary>
    /// <param name="prefix">Hugging Face prefix such as <c>model.layers.0.mlp</c>.</param>
    /// <param name="layerIndex">0-based global layer.</param>
    /// <exception cref="ConfigException">The layout splits the layer.</exception>
    public static MoeLayer Create(LayerContext context, MoeConfig moe, string prefix, int layerIndex)
    {
        if (context.TensorParallelSize > 1 || context.Parallel.ExpertParallel.Size > 1)
            throw new ConfigException(
                "MODEL021",
                $"Layer {layerIndex} of {context.Config.Architecture} has experts, which cannot be split over ranks yet; use tensor_model_parallel_size = 1 and expert_model_parallel_size = 1.");
        var statistics = context.Routing ?? throw new InvalidOperationException($"Layer {layerIndex} has experts and nowhere to report its routing.");
        var (hidden, weights) = (context.Config.HiddenSize, context.Weights);
        var router = new Router(Gate(context, $"{prefix}.gate.weight", moe.NumExperts), moe, context.Moe, statistics, layerIndex);
        var experts = new GroupedExperts(
            weights, $"{prefix}.experts", moe.NumExperts, hidden, moe.FfnHiddenSize, context.Recompute.Covers(RecomputeModules.MoeActivation));
        var shared = moe.SharedExpertFfnHiddenSize is { } width
            ? new SharedExpert(new Mlp(context, $"{prefix}.shared_expert", width), Gate(context, $"{prefix}.shared_expert_gate.weight", 1))
            : null;
        return new MoeLayer(router, new TokenDispatcher(moe.NumExperts), experts, shared);
    }

    private static Parameter Gate(LayerContext context, string name, int rows) => context.Weights.Create(
        name, [rows, context.Config.HiddenSize], [TensorBlock.Whole(name, rows, context.Config.HiddenSize)],
        new ParameterTraits { Decays = true, IsSequenceParallel = context.Region.IsActive });
}
