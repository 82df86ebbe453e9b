using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>
/// Mixture of experts in the place of an MLP: router, dispatch, experts, combine, plus the shared expert. Padding tokens are left out before the
/// router: they reach no routed expert, no count and no loss, and get 0 from the routed experts. Ranks of a tensor-parallel group route a share of
/// the tokens each, with sequence parallelism those they hold, and without it sum their results.
/// </summary>
/// <remarks>
/// Shape letters: T tokens of this rank's activations, N real tokens of its share, R rows (one for each assignment), k experts of a token, H hidden.
/// </remarks>
public sealed class MoeLayer : IInputRestorable
{
    private const int Routing = 0, Dispatch = 1, Routed = 2, Shared = 3; // children

    private readonly Router router;
    private readonly TokenDispatcher dispatcher;
    private readonly GroupedExperts experts;
    private readonly SharedExpert? shared;
    private readonly SequenceParallelRegion region;
    private readonly bool overlapsShared;

    /// <summary>Gate, routed experts, shared expert.</summary>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="shared">Null when the architecture has none.</param>
    /// <param name="overlapsShared">The shared expert runs while tokens and gradients travel to the routed ones; no number depends on it.</param>
    public MoeLayer(
        Router router, TokenDispatcher dispatcher, GroupedExperts experts, SharedExpert? shared, SequenceParallelRegion region, bool overlapsShared)
    {
        (this.router, this.dispatcher, this.experts, this.shared, this.region) = (router, dispatcher, experts, shared, region);
        this.overlapsShared = overlapsShared;
        Parameters = [.. router.Parameters, .. experts.Parameters, .. shared?.Parameters ?? []];
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        var tokens = TokensOf(x, saved);
        var real_NH = tokens.Select(x);
        var routing = router.Forward(real_NH, saved.Child(Routing));
        var travelling = dispatcher.StartDispatch(real_NH, routing, saved.Child(Dispatch));
        var sharedOutput = overlapsShared ? shared?.Forward(x, saved.Child(Shared)) : null;
        var rows_RH = experts.Forward(dispatcher.FinishDispatch(travelling), saved.Child(Routed));
        var output = tokens.Scatter(dispatcher.Combine(rows_RH, saved.Child(Dispatch)), x.shape[0]);
        region.JoinShares(output);
        if (shared is not null) output.add_(sharedOutput ?? shared.Forward(x, saved.Child(Shared)));
        return output.MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var tokens = TokensOf(gradOutput, saved);
        var travelling = dispatcher.StartCombineBackward(tokens.Select(gradOutput), saved.Child(Dispatch));
        var gradShared = overlapsShared ? shared?.BackwardInput(gradOutput, saved.Child(Shared)) : null;
        var gradRows_RH = dispatcher.FinishCombineBackward(travelling, saved.Child(Dispatch));
        var (gradDispatched_RH, gradWeights_R) = experts.BackwardInput(gradRows_RH, saved.Child(Routed));
        var (gradReal_NH, gradWeights_Nk) = dispatcher.DispatchBackward(gradDispatched_RH, gradWeights_R, saved.Child(Dispatch));
        gradReal_NH.add_(router.BackwardInput(gradWeights_Nk, tokens, saved.Child(Routing)));
        var gradInput = tokens.Scatter(gradReal_NH, gradOutput.shape[0]);
        region.JoinShares(gradInput);
        if (shared is not null) gradInput.add_(gradShared ?? shared.BackwardInput(gradOutput, saved.Child(Shared)));
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
    public bool TakesInputLate => false;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved)
    {
        router.DiscardInput(saved.Child(Routing));
        shared?.DiscardInput(saved.Child(Shared));
    }

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved)
    {
        using (var real_NH = TokensOf(x, saved).Select(x)) router.RestoreInput(real_NH, saved.Child(Routing));
        shared?.RestoreInput(x, saved.Child(Shared));
    }

    private RealTokens TokensOf(Tensor x, Saved saved) => saved.Context.RealTokensOf(region.ShareOf(x.shape[0]), x.shape[0]);
}
