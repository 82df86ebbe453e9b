namespace Megatron.Testing;

/// <summary>A new empty folder, deleted with its content at the end.</summary>
public sealed class TemporaryFolder : IDisposable
{
    /// <summary>Absolute path.</summary>
    public string Root { get; } = Directory.CreateTempSubdirectory("megatron-test-").FullName;

    /// <summary>A path below it.</summary>
    public string Combine(params string[] parts) => Path.Combine([Root, .. parts]);

    /// <inheritdoc/>
    public void Dispose() => Directory.Delete(Root, recursive: true);
}
