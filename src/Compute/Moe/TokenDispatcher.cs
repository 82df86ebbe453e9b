using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>Tokens as their experts get them.</summary>
/// <param name="Rows_RH">[R, H] one row for each assignment to an expert of this rank, sorted by expert.</param>
/// <param name="Weights_R">[R] router weight of each row.</param>
/// <param name="Ends_E">[E] int32 on the rows' device: the row after the last of each expert of this rank.</param>
public readonly record struct DispatchedTokens(Tensor Rows_RH, Tensor Weights_R, Tensor Ends_E);

/// <summary>Tokens on their way to their experts.</summary>
public readonly record struct StartedDispatch(RowTransfer Rows, RowTransfer Weights, ExchangePlan Plan, Tensor Ends_E);

/// <summary>
/// Brings tokens to their experts and the results back: sort by expert, exchange between ranks, run, exchange back, sum by token ("alltoall"
/// of <c>--moe_token_dispatcher_type</c>).
/// </summary>
/// <remarks>
/// Communicates over the groups of <paramref name="exchange"/>: once the plan; rows of H and weights out and rows of H back in the forward; the
/// same with the gradients in the backward. Shape letters: T tokens, k experts of a token, R rows, H hidden. The experts multiply by the weights,
/// so the way back is a plain sum.
/// </remarks>
public sealed class TokenDispatcher(ExpertExchange exchange)
{
    private const int PlaceOfRow = 0, RowOfPlace = 1, Plan = 2; // slots

    /// <summary>Sorts the tokens by expert and starts to bring them to their experts' ranks: they travel while the caller does something else.</summary>
    public StartedDispatch StartDispatch(Tensor x_TH, Routing routing, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (order, rowsPerExpert_E) = TokenPermutation.Plan(routing.Experts_Tk, exchange.NumExperts);
        var counts = exchange.Plan(rowsPerExpert_E);
        var plan = exchange.Read(counts);
        saved.Keep(PlaceOfRow, order.PlaceOfRow_R);
        saved.Keep(RowOfPlace, order.RowOfPlace_Tk);
        saved.Keep(Plan, counts);
        var rows = exchange.StartSend(TokenPermutation.Copy(x_TH, order), plan);
        var weights = exchange.StartSend(routing.Weights_Tk.reshape(-1).index_select(0, order.PlaceOfRow_R), plan);
        rows.Rows.MoveToOuterDisposeScope();
        weights.Rows.MoveToOuterDisposeScope();
        return new StartedDispatch(rows, weights, plan, exchange.Ends(rowsPerExpert_E, plan).MoveToOuterDisposeScope());
    }

    /// <summary>The tokens of this rank's experts from all ranks; waits for them.</summary>
    public DispatchedTokens FinishDispatch(StartedDispatch started) => new(
        exchange.FinishSend(started.Rows, started.Plan), exchange.FinishSend(started.Weights, started.Plan), started.Ends_E);

    /// <summary>Sums the experts' results of each token.</summary>
    /// <returns>[T, H].</returns>
    public Tensor Combine(Tensor rows_RH, Saved saved)
    {
        using var scope = NewDisposeScope();
        var returned_RH = exchange.Return(rows_RH, exchange.Read(saved.Peek(Plan)));
        return TokenPermutation.Sum(returned_RH, saved.Peek(RowOfPlace)).MoveToOuterDisposeScope();
    }

    /// <summary>Starts the gradient of <see cref="Combine"/>.</summary>
    /// <param name="gradOutput_TH">[T, H].</param>
    public RowTransfer StartCombineBackward(Tensor gradOutput_TH, Saved saved)
    {
        using var gradRows_RH = TokenPermutation.Copy(gradOutput_TH, new TokenOrder(saved.Peek(PlaceOfRow), saved.Peek(RowOfPlace)));
        return exchange.StartSend(gradRows_RH, exchange.Read(saved.Peek(Plan)));
    }

    /// <summary>The gradient of <see cref="Combine"/>, [R, H]; waits for it.</summary>
    public Tensor FinishCombineBackward(RowTransfer started, Saved saved) => exchange.FinishSend(started, exchange.Read(saved.Peek(Plan)));

    /// <summary>Gradient of the dispatch; frees what is kept.</summary>
    /// <returns>[T, H], and [T, k] for the router.</returns>
    public (Tensor GradX_TH, Tensor GradWeights_Tk) DispatchBackward(Tensor gradRows_RH, Tensor gradWeights_R, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (rowOfPlace_Tk, plan) = (saved.Take(RowOfPlace), exchange.Read(saved.Take(Plan)));
        saved.Release(PlaceOfRow);
        var gradX_TH = TokenPermutation.Sum(exchange.Return(gradRows_RH, plan), rowOfPlace_Tk);
        var gradWeights_Tk = exchange.Return(gradWeights_R, plan).index_select(0, rowOfPlace_Tk.view(-1)).view(rowOfPlace_Tk.shape);
        return (gradX_TH.MoveToOuterDisposeScope(), gradWeights_Tk.MoveToOuterDisposeScope());
    }
}
