using System.Runtime.InteropServices;

namespace Megatron.Compute.Data.Prepared;

/// <summary>Where one sample lies in the data file of a prepared source, and what is asked for without reading it.</summary>
/// <param name="Offset">First byte of its tokens.</param>
/// <param name="TargetWeight">Sum of the loss weights of its targets.</param>
/// <param name="Length">Tokens.</param>
/// <param name="IsWeighted">1 when loss weights are stored, 0 when a bit mask is: every target weighs 1.</param>
[StructLayout(LayoutKind.Sequential, Pack = 4)]
internal readonly record struct SampleEntry(long Offset, double TargetWeight, int Length, int IsWeighted);

/// <summary>What became of one usable row of a source.</summary>
/// <param name="Offset">First byte of its JSON in the source file, −1 when it cannot be read from there alone.</param>
/// <param name="NumBytes">Bytes of that JSON.</param>
/// <param name="Number">0-based number of the row in the source.</param>
/// <param name="Line">1-based line of the row in the source.</param>
/// <param name="FirstSample">Its first sample; those of the next row begin where its own end.</param>
/// <param name="Fate">0: it gave samples; else 1 + index of the reason in <see cref="PreparedFacts.Reasons"/>.</param>
/// <param name="Flags">What is worth counting.</param>
[StructLayout(LayoutKind.Sequential, Pack = 4)]
internal readonly record struct RowEntry(long Offset, int NumBytes, int Number, int Line, int FirstSample, short Fate, RowFlags Flags);

/// <summary>Facts of a row that are counted when it is chosen.</summary>
[Flags]
internal enum RowFlags : short
{
    /// <summary>Nothing to count.</summary>
    None = 0,

    /// <summary>Longer than <c>max_length</c> and cut.</summary>
    WasCut = 1,

    /// <summary>Several rounds, of which the template uses the last only.</summary>
    LosesRounds = 2,
}
