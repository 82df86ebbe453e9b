namespace Megatron.Compute.Transformer;

/// <summary>How much of the forward is thrown away and computed again in the backward.</summary>
public enum RecomputeGranularity
{
    /// <summary>Everything is kept but what a GPU's backward kernels write again on their way: outputs of SwiGLU and of norms in front of dense blocks.</summary>
    None,

    /// <summary>Named modules of every layer (arXiv 2205.05198, section 5).</summary>
    Selective,

    /// <summary>Whole layers: only their inputs are kept (arXiv 1604.06174).</summary>
    Full,
}

/// <summary>Which layers full recompute covers.</summary>
public enum RecomputeMethod
{
    /// <summary>All layers, in units of <see cref="RecomputeOptions.NumLayers"/>; the input of each unit is kept.</summary>
    Uniform,

    /// <summary>The first <see cref="RecomputeOptions.NumLayers"/> layers of the stage, one by one; the others keep everything.</summary>
    Block,
}

/// <summary>Modules of a layer that selective recompute can name.</summary>
[Flags]
public enum RecomputeModules
{
    None = 0,

    /// <summary>Scores, softmax and weighted sum of attention.</summary>
    CoreAttention = 1,

    /// <summary>The whole MLP of a dense layer.</summary>
    Mlp = 2,

    /// <summary>Outputs of the two norms of a layer; on a GPU this adds only those in front of experts.</summary>
    LayerNorm = 4,

    /// <summary>The whole mixture of experts of a layer: router, dispatch, experts, shared expert.</summary>
    Moe = 8,

    /// <summary>The activation inside the routed experts; on a GPU it is never kept.</summary>
    MoeActivation = 16,
}

/// <summary>Activation recompute; results have the same bits with every setting.</summary>
public sealed record RecomputeOptions
{
    public required RecomputeGranularity Granularity { get; init; }

    /// <summary>Selective: the modules.</summary>
    public RecomputeModules Modules { get; init; }

    /// <summary>Full: the method.</summary>
    public RecomputeMethod Method { get; init; }

    /// <summary>Full: layers per unit (uniform) or number of layers (block).</summary>
    public int NumLayers { get; init; } = 1;

    /// <summary>See <see cref="RecomputeGranularity.None"/>.</summary>
    public static RecomputeOptions Off { get; } = new() { Granularity = RecomputeGranularity.None };

    /// <summary>True when selective recompute covers <paramref name="module"/>.</summary>
    public bool Covers(RecomputeModules module) => Granularity == RecomputeGranularity.Selective && Modules.HasFlag(module);
}
