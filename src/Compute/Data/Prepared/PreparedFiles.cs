using System.Text.Encodings.Web;
using System.Text.Json;

namespace Megatron.Compute.Data.Prepared;

/// <summary>Names and form of the files of a prepared source.</summary>
internal static class PreparedFiles
{
    /// <summary>Samples' bytes (<see cref="SampleBytes"/>).</summary>
    public const string Data = "data.bin";

    /// <summary>One <see cref="SampleEntry"/> for each sample.</summary>
    public const string Samples = "samples.bin";

    /// <summary>One <see cref="RowEntry"/> for each usable row.</summary>
    public const string Rows = "rows.bin";

    /// <summary><see cref="PreparedFacts"/> of a complete source; written last.</summary>
    public const string Facts = "prepared.json";

    /// <summary>The same of a source that is being written.</summary>
    public const string Progress = "progress.json";

    /// <summary>Held open by the one writer.</summary>
    public const string Lock = "lock";

    /// <summary>How facts are written.</summary>
    public static readonly JsonSerializerOptions Json = new() { WriteIndented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    /// <summary>Facts in a file; null when there are none that this version can use.</summary>
    public static PreparedFacts? ReadFacts(string path)
    {
        try
        {
            using var file = File.OpenRead(path);
            var facts = JsonSerializer.Deserialize<PreparedFacts>(file, Json);
            return facts?.Format == PreparedFacts.CurrentFormat ? facts : null;
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException or JsonException)
        {
            return null;
        }
    }
}
