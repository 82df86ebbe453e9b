using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Sorting of tokens by expert, in plain libtorch operations. A token that goes to k experts becomes k rows; rows of one expert lie
/// together, in the order of their tokens. Gathers only, so every order of summation is fixed.
/// </summary>
/// <remarks>Shape letters: T tokens, k experts of a token, R = T·k rows, E experts, H hidden.</remarks>
public static class TokenPermutation
{
    /// <param name="expertIndex_Tk">[T, k] int64: the experts of each token, all different.</param>
    /// <param name="numExperts">E.</param>
    /// <returns>
    /// [R] int64 place in [T, k], read row by row, of each sorted row; [T, k] int64 sorted row of each place; [E] int64 rows of each expert.
    /// </returns>
    public static (Tensor PlaceOfRow_R, Tensor RowOfPlace_Tk, Tensor RowsPerExpert_E) Plan(Tensor expertIndex_Tk, int numExperts)
    {
        using var scope = NewDisposeScope();
        var flat_R = expertIndex_Tk.reshape(-1);
        var placeOfRow_R = flat_R.sort(dim: 0, descending: false, stable: true).Indices;
        var rowOfPlace_R = empty_like(placeOfRow_R).scatter_(0, placeOfRow_R, arange(flat_R.shape[0], int64, flat_R.device));
        var rowsPerExpert_E = zeros([numExperts], int64, flat_R.device).scatter_add_(0, flat_R, ones_like(flat_R));
        return (placeOfRow_R.MoveToOuterDisposeScope(), rowOfPlace_R.view(expertIndex_Tk.shape).MoveToOuterDisposeScope(), rowsPerExpert_E.MoveToOuterDisposeScope());
    }

    /// <summary>Copies each token to its rows; the gradient of <see cref="Sum"/> too.</summary>
    /// <returns>[R, H].</returns>
    public static Tensor Copy(Tensor x_TH, Tensor placeOfRow_R, long expertsPerToken)
    {
        using var token_R = placeOfRow_R.div(expertsPerToken, RoundingMode.floor);
        return x_TH.index_select(0, token_R);
    }

    /// <summary>Sums the rows of each token; the gradient of <see cref="Copy"/> too.</summary>
    /// <returns>[T, H].</returns>
    public static Tensor Sum(Tensor rows_RH, Tensor rowOfPlace_Tk)
    {
        using var scope = NewDisposeScope();
        var rows_TkH = rows_RH.index_select(0, rowOfPlace_Tk.view(-1)).view([.. rowOfPlace_Tk.shape, rows_RH.shape[1]]);
        return rows_TkH.sum(dim: 1).MoveToOuterDisposeScope();
    }
}
