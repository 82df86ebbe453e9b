using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>
/// Mixture of experts in the place of an MLP: router, dispatch, experts, combine, plus the shared expert. Padding tokens are left out before the
/// router: they reach no routed expert, no count and no loss, and get 0 from the routed experts.
/// </summary>
/// <remarks>Shape letters: T tokens of the row, N real tokens, R rows (one for each assignment), k experts of a token, H hidden.</remarks>
public sealed class MoeLayer : IInputRestorable
{
    private const int Routing = 0, Dispatch = 1, Routed = 2, Shared = 3; // children

    private readonly Router router;
    private readonly TokenDispatcher dispatcher;
    private readonly GroupedExperts experts;
    private readonly SharedExpert? shared;

    /// <summary>Gate, routed experts, shared expert.</summary>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="shared">Null when the architecture has none.</param>
    public MoeLayer(Router router, TokenDispatcher dispatcher, GroupedExperts experts, SharedExpert? shared)
    {
        (this.router, this.dispatcher, this.experts, this.shared) = (router, dispatcher, experts, shared);
        Parameters = [.. router.Parameters, .. experts.Parameters, .. shared?.Parameters ?? []];
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        var tokens = saved.Context.RealTokens;
        var real_NH = tokens.Select(x);
        var routing = router.Forward(real_NH, saved.Child(Routing));
        var dispatched = dispatcher.Dispatch(real_NH, routing, saved.Child(Dispatch));
        var rows_RH = experts.Forward(dispatched, saved.Child(Routed));
        var output = tokens.Scatter(dispatcher.Combine(rows_RH, saved.Child(Dispatch)), x.shape[0]);
        if (shared is not null) output.add_(shared.Forward(x, saved.Child(Shared)));
        return output.MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var tokens = saved.Context.RealTokens;
        var gradRows_RH = dispatcher.CombineBackward(tokens.Select(gradOutput), saved.Child(Dispatch));
        var (gradDispatched_RH, gradWeights_R) = experts.BackwardInput(gradRows_RH, saved.Child(Routed));
        var (gradReal_NH, gradWeights_Nk) = dispatcher.DispatchBackward(gradDispatched_RH, gradWeights_R, saved.Child(Dispatch));
        gradReal_NH.add_(router.BackwardInput(gradWeights_Nk, saved.Child(Routing)));
        var gradInput = tokens.Scatter(gradReal_NH, gradOutput.shape[0]);
        if (shared is not null) gradInput.add_(shared.BackwardInput(gradOutput, saved.Child(Shared)));
        return gradInput.MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        shared?.BackwardWeight(saved.Child(Shared));
        experts.BackwardWeight(saved.Child(Routed));
        router.BackwardWeight(saved.Child(Routing));
    }

    /// <inheritdoc/>
    public void DiscardInput(Saved saved)
    {
        router.DiscardInput(saved.Child(Routing));
        shared?.DiscardInput(saved.Child(Shared));
    }

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved)
    {
        using (var real_NH = saved.Context.RealTokens.Select(x)) router.RestoreInput(real_NH, saved.Child(Routing));
        shared?.RestoreInput(x, saved.Child(Shared));
    }
}
