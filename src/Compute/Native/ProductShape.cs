using System.Globalization;

namespace Megatron.Compute.Native;

/// <summary>
/// Everything but the addresses that decides how a GPU forms D = op(A) · op(B): column-major, as cuBLAS names things. Equal shapes are formed
/// by the same algorithm.
/// </summary>
internal readonly record struct ProductShape
{
    private const int MaxAlignment = 256;

    public required int M { get; init; }
    public required int N { get; init; }
    public required int K { get; init; }
    public required bool TransposeA { get; init; }
    public required bool TransposeB { get; init; }

    /// <summary>Elements between the end of a column and the next one; D has none.</summary>
    public long GapA { get; init; }
    public long GapB { get; init; }

    /// <summary>cudaDataType of each matrix.</summary>
    public required int TypeA { get; init; }
    public required int TypeB { get; init; }
    public required int TypeD { get; init; }

    /// <summary>A vector of M is added to every column of D.</summary>
    public bool HasBias { get; init; }

    /// <summary>float8: partial sums stay inside the matrix unit, which is faster and keeps fewer bits.</summary>
    public bool IsFastAccumulation { get; init; }

    /// <summary>Bytes: the largest power of two, up to 256, that divides all addresses.</summary>
    public required int Alignment { get; init; }

    public long LeadingA => (TransposeA ? K : M) + GapA;

    public long LeadingB => (TransposeB ? N : K) + GapB;

    public double FloatingPointOperations => 2.0 * M * N * K;

    /// <summary>
    /// Stands for all shapes that differ from this one a little in the dimension that counts tokens, the only one that changes from row to row:
    /// they share one measurement.
    /// </summary>
    public ProductShape Representative() => IsWeightGradient ? this with { K = RoundUp(K) } : this with { N = RoundUp(N) };

    /// <summary>For a file; the inverse is not needed.</summary>
    public string ToKey() => string.Create(
        CultureInfo.InvariantCulture,
        $"{M},{N},{K},{(TransposeA ? 'T' : 'N')}{(TransposeB ? 'T' : 'N')},{GapA},{GapB},{TypeA},{TypeB},{TypeD},{(HasBias ? 1 : 0)}{(IsFastAccumulation ? 1 : 0)},{Alignment}");

    /// <summary>The <see cref="Alignment"/> of some addresses; null pointers do not count.</summary>
    public static int AlignmentOf(params ReadOnlySpan<nint> addresses)
    {
        nint bits = MaxAlignment;
        foreach (var address in addresses) bits |= address;
        return (int)(bits & -bits);
    }

    /// <summary>Sums over tokens: only weight gradients are formed in fp32.</summary>
    private bool IsWeightGradient => TypeD == CublasLt.TypeFp32;

    /// <summary>Eight steps to the octave.</summary>
    private static int RoundUp(int count)
    {
        var shift = Math.Max(0, 32 - int.LeadingZeroCount(count - 1) - 4);
        return ((count - 1 >> shift) + 1) << shift;
    }
}

/// <summary>Where the matrices of a product lie on the device; 0 for what it does not have.</summary>
/// <param name="A">First element.</param>
/// <param name="B">First element.</param>
/// <param name="D">First element; also what is added to when the product accumulates.</param>
/// <param name="Bias">M elements of D's type.</param>
/// <param name="ScaleA">One fp32: the value of A's units, for float8.</param>
/// <param name="ScaleB">Likewise.</param>
/// <param name="Addend">A matrix like D that is added to the product.</param>
internal readonly record struct ProductAddresses(nint A, nint B, nint D, nint Bias = 0, nint ScaleA = 0, nint ScaleB = 0, nint Addend = 0);
