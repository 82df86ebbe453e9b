namespace Megatron.Compute.Ops;

/// <summary>
/// The tokens of a row that this rank works on where the ranks that hold the row share its tokens out, whether or not its activations hold
/// the other tokens too.
/// </summary>
/// <param name="First">Index in the row of the first token.</param>
/// <param name="End">One past the last token.</param>
/// <param name="Origin">Index in the row of the first token of this rank's activations.</param>
public readonly record struct TokenShare(int First, int End, int Origin)
{
    /// <summary>Every token of a row that is whole on this rank.</summary>
    public static TokenShare Whole(long numTokens) => new(0, (int)numTokens, 0);
}
