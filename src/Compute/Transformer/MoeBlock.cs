using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;

namespace Megatron.Compute.Transformer;

/// <summary>Puts the parts of a mixture-of-experts layer together.</summary>
public static class MoeBlock
{
    /// <summary>A layer with its parameters, uninitialised.</summary>
    /// <param name="prefix">Hugging Face prefix such as <c>model.layers.0.mlp</c>.</param>
    /// <param name="layerIndex">0-based global layer.</param>
    /// <exception cref="ConfigException">The layout does not divide the layer.</exception>
    public static MoeLayer Create(LayerContext context, MoeConfig moe, string prefix, int layerIndex)
    {
        var statistics = context.Routing ?? throw new InvalidOperationException($"Layer {layerIndex} has experts and nowhere to report its routing.");
        var (parallel, region) = (context.Parallel, context.Region);
        var gate = Gate(context, $"{prefix}.gate.weight", moe.NumExperts, isPartial: region.Group.Size > 1);
        var router = new Router(gate, moe, context.Moe, statistics, layerIndex, [region.Group, parallel.ContextParallel]);
        var exchange = new ExpertExchange(parallel.ExpertParallel, parallel.ExpertTensorParallel, moe.NumExperts);
        var experts = new GroupedExperts(
            context.Weights, $"{prefix}.experts", SliceOf(moe, parallel), context.Config.HiddenSize, context.Recompute.Covers(RecomputeModules.MoeActivation));
        var shared = moe.SharedExpertFfnHiddenSize is { } width
            ? new SharedExpert(new Mlp(context, $"{prefix}.shared_expert", width), Gate(context, $"{prefix}.shared_expert_gate.weight", 1, region.IsActive))
            : null;
        return new MoeLayer(router, new TokenDispatcher(exchange), experts, shared, region, context.Moe.OverlapSharedExpert);
    }

    private static ExpertSlice SliceOf(MoeConfig moe, ParallelState parallel)
    {
        var (ep, etp) = (parallel.ExpertParallel, parallel.ExpertTensorParallel);
        var numExperts = Divide.Exactly(moe.NumExperts, ep.Size, "num_experts", "expert_model_parallel_size");
        var numFeatures = Divide.Exactly(moe.FfnHiddenSize, etp.Size, "moe_ffn_hidden_size", "expert_tensor_parallel_size");
        return new ExpertSlice(ep.Rank * numExperts, numExperts, etp.Rank * numFeatures, numFeatures, moe.FfnHiddenSize);
    }

    /// <param name="isPartial">The gate sees a share of the tokens on each rank, so its gradient is summed over the tensor-parallel group.</param>
    private static Parameter Gate(LayerContext context, string name, int rows, bool isPartial) => context.Weights.Create(
        name, [rows, context.Config.HiddenSize], [TensorBlock.Whole(name, rows, context.Config.HiddenSize)],
        new ParameterTraits { Decays = true, IsSequenceParallel = isPartial });
}
